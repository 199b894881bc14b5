"""How a server process ends: its work done, within the grace period, or at once when it is told twice."""

import base64
import contextlib
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from benchmarks.known_rewards import KnownGroup
from benchmarks.server_processes import Replica, free_port

from jrm_client import JRMClient
from jrm_service.server import listen
from support.servers import error_of

NEVER = 100_000  # seconds


@pytest.fixture
def replica(tmp_path, request) -> Iterator[Replica]:
    """``request.param``: seconds that its device takes for a batch, and of grace."""
    seconds, grace = request.param
    settings = {"backend": "fake", "grace_s": grace, "hang_timeout_s": NEVER}
    with Replica(settings, ["--seconds-per-batch", seconds], tmp_path / "log") as running:
        yield running


def body(number: int) -> dict:
    group = KnownGroup(number, 1)
    images = {"source": group.source, "edited": group.edited[0]}
    return {"instruction": "x"} | {name: base64.b64encode(image).decode() for name, image in images.items()}


def score(url: str) -> httpx.Response:
    return httpx.post(f"{url}/v1/score", json=body(1), timeout=60)


@contextlib.contextmanager
def caller(url: str) -> Iterator[list[httpx.Response | httpx.TransportError]]:
    """Someone whose candidate is on the device; the list has the reply, or what was raised, after the block."""
    outcome: list[httpx.Response | httpx.TransportError] = []

    def call() -> None:
        try:
            outcome.append(score(url))
        except httpx.TransportError as error:
            outcome.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    while "jrm_batch_candidates_count 1.0" not in httpx.get(f"{url}/metrics").text:
        time.sleep(0.01)  # a process has no event to wait for
    yield outcome
    thread.join()


def until_draining(url: str) -> None:
    while httpx.get(f"{url}/health/ready").status_code == 200:
        time.sleep(0.01)


@pytest.mark.parametrize("replica", [(0.5, 60)], indirect=True)
def test_work_that_is_under_way_is_answered_before_the_end(replica):
    with caller(replica.url) as outcome:
        assert replica.stop() == 0
    assert outcome[0].status_code == 200


@pytest.mark.parametrize("replica", [(NEVER, 1)], indirect=True)
def test_work_that_outlasts_the_grace_period_is_told_to_go_elsewhere(replica):
    with caller(replica.url) as outcome:
        assert replica.stop() == 0
    assert error_of(outcome[0]) == (503, "draining")


@pytest.mark.parametrize("replica", [(NEVER, NEVER)], indirect=True)
def test_it_drains_until_a_second_signal_ends_it_at_once(replica):
    with caller(replica.url):
        replica.signal(signal.SIGTERM)
        until_draining(replica.url)
        assert error_of(httpx.get(f"{replica.url}/health/ready")) == (503, "draining")
        assert error_of(score(replica.url)) == (503, "draining")
        assert httpx.get(f"{replica.url}/health/live").status_code == 200
        assert not replica.ended
        replica.signal(signal.SIGTERM)
        assert replica.wait() == 0


def test_a_server_whose_only_device_hangs_for_ever_ends_with_status_1(tmp_path):
    settings = {"backend": "fake", "grace_s": NEVER, "hang_timeout_s": 0.2}
    replica = Replica(settings, ["--seconds-per-batch", NEVER], tmp_path / "log", module="tests.support.impatient")
    with replica, caller(replica.url) as outcome:
        assert replica.wait() == 1  # after five starts that failed
    assert not isinstance(outcome[0], httpx.Response) or outcome[0].status_code >= 500


# --- several on one port ----------------------------------------------------------------------------------------------


@pytest.fixture
def sharing(tmp_path) -> Iterator[tuple[Replica, Replica]]:
    """Two servers on one port, which say apart from each other how many devices they have: one, and two."""
    settings, port = {"backend": "fake", "reuse_port": "true", "cache_entries": 0}, free_port()
    pace = ["--seconds-per-candidate", 0.002]
    one = Replica(settings, [*pace, "--devices", 1], tmp_path / "one", port)
    two = Replica(settings, [*pace, "--devices", 2], tmp_path / "two", port)
    with one, two:
        yield one, two


def who_answers(url: str) -> set[str]:
    return {httpx.get(f"{url}/v1/info").json()["device"] for _ in range(40)}


def test_servers_on_one_port_both_answer_and_one_that_is_stopped_loses_nothing(sharing):
    one, two = sharing
    assert who_answers(one.url) == {"1 paced", "2 paced"}
    stopping = threading.Event()

    def train(first: int) -> int:
        with JRMClient(one.url) as client:  # connections of its own
            for number in range(first, first + 20):
                group = KnownGroup(number, 4)
                rewards = client.score_group(group.source, group.instruction, list(group.edited)).rewards
                np.testing.assert_array_equal(rewards, np.float32(group.rewards))
                if number == first + 5:
                    stopping.set()
        return 20

    with ThreadPoolExecutor() as threads:
        trained = [threads.submit(train, 1000 * number) for number in range(6)]
        stopping.wait(60)
        assert one.stop() == 0
        assert [training.result() for training in trained] == [20] * 6
    assert who_answers(two.url) == {"2 paced"}
    assert two.stop() == 0


def test_a_port_is_shared_by_those_alone_that_say_so(sharing):
    _, two = sharing
    port = int(two.url.rpartition(":")[2])
    with pytest.raises(OSError, match=f"cannot listen on port {port}"):
        listen("127.0.0.1", port)


def test_a_platform_without_shared_ports_says_so(monkeypatch):
    monkeypatch.delattr(socket, "SO_REUSEPORT")
    with pytest.raises(OSError, match="reuse_port: sockets of this platform cannot"):
        listen("127.0.0.1", 0, reuse_port=True)
