"""A server whose explain worker dies, hangs and does not start: what callers read, and what scoring makes of it."""

from __future__ import annotations

import base64
import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from jrm_service.scoring.backend import StartFailed
from jrm_service.settings import Settings
from support import processes, scripted_explainer, servers
from support.pictures import encode, photo
from support.servers import Metric, error_of

TESTS = str(Path(__file__).parents[2])
MODULE = "support.scripted_explainer"
PAIR = {
    "source": base64.b64encode(encode(photo(40, 40, seed=1))).decode(),
    "edited": base64.b64encode(encode(photo(40, 40, seed=2))).decode(),
    "instruction": "make it blue",
}
SLOW = PAIR | {"max_tokens": scripted_explainer.SLOW, "stream": True}


@pytest.fixture(autouse=True)
def scripted_explainers_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([TESTS, os.environ.get("PYTHONPATH", "")]))


def explainer() -> int:
    [pid] = processes.children(os.getpid(), MODULE)
    return pid


def explain(url: str, **changes) -> httpx.Response:
    return httpx.post(f"{url}/v1/explain", json=PAIR | {"max_tokens": 4} | changes, timeout=120)


def wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + 240
    while (reply := httpx.get(f"{url}/health/ready")).status_code != 200:
        assert time.monotonic() < deadline, reply.text
        time.sleep(0.05)


@contextmanager
def scoring(url: str) -> Iterator[None]:
    """Callers who score all the time, and always read the same reward."""

    def rewards() -> float:
        reply = httpx.post(f"{url}/v1/score", json=PAIR, timeout=120)
        assert reply.status_code == 200, reply.text
        return reply.json()["groups"][0]["scores"][0]["reward"]

    expected, over, answered = rewards(), threading.Event(), itertools.count()

    def call() -> None:
        while not over.is_set():
            assert rewards() == pytest.approx(expected, abs=1e-5)
            next(answered)

    with ThreadPoolExecutor(2) as pool:
        callers = [pool.submit(call) for _ in range(2)]
        try:
            yield
        finally:
            over.set()
        for caller in callers:
            caller.result()
    assert next(answered) > 2


@pytest.mark.heavy
@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_an_explain_worker_that_is_gone_under_load_comes_back_and_scoring_goes_on(fault: signal.Signals) -> None:
    settings = Settings(device="cpu", serve="score,explain", cache_entries=0, hang_timeout_s=15)
    with servers.serving(settings, explain_module=MODULE) as url, scoring(url):
        begun = threading.Barrier(4)

        def read() -> str:
            with httpx.stream("POST", f"{url}/v1/explain", json=SLOW, timeout=240) as reply:
                lines = reply.iter_lines()
                next(lines)
                begun.wait(60)
                return "\n".join(lines)

        with ThreadPoolExecutor(3) as pool:
            streams = [pool.submit(read) for _ in range(3)]
            begun.wait(60)
            gone = explainer()
            os.kill(gone, fault)
            for stream in streams:
                assert stream.result().count('"code": "explain_unavailable"') == 2  # one for each dimension
        refused = explain(url)
        assert error_of(refused) == (503, "explain_unavailable")
        assert int(refused.headers["retry-after"]) >= 1
        reply = httpx.get(f"{url}/health/ready")
        assert error_of(reply) == (503, "not_ready")
        assert "explain: restarting" in reply.text
        assert "score" in reply.text
        wait_until_ready(url)
        assert explain(url).status_code == 200
        assert explainer() != gone
        metric = Metric(url)
        assert metric("jrm_explain_engine_restarts_total") == 1
        assert metric("jrm_worker_failures_total") == 0
        assert metric("jrm_explain_running") == 0


@pytest.mark.heavy
def test_a_server_whose_explain_worker_does_not_come_back_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuses = tmp_path / "refuses"
    monkeypatch.setenv(scripted_explainer.REFUSES, str(refuses))
    told: list[BaseException] = []
    heard = threading.Event()

    def failed(error: BaseException) -> None:
        told.append(error)
        heard.set()

    settings = Settings(device="cpu", serve="explain")
    with servers.serving(settings, explain_module=MODULE, on_failed=failed) as url:
        refuses.touch()
        os.kill(explainer(), signal.SIGKILL)
        assert heard.wait(240)
        assert isinstance(told[0], StartFailed)
        assert "explain: failed" in httpx.get(f"{url}/health/ready").text
        assert error_of(explain(url)) == (503, "explain_unavailable")
        assert processes.children(os.getpid(), MODULE) == []
