"""One log line per request: what it says, and what it never says."""

import asyncio
import base64
import logging

import httpx
import pytest

from jrm_service.api.keys import Key, digest
from jrm_service.scoring.fakes import FakeBackend, RaisingBackend, SlowBackend
from jrm_service.settings import Settings
from support import servers
from support.pictures import encode, photo

RED, BLUE = (base64.b64encode(encode(photo(40, 40, seed=n))).decode() for n in range(2))
SECRET = "jrm_alice-secret"
INSTRUCTION = "turn the hedgehog into a teapot"


@pytest.fixture(autouse=True)
def every_level(caplog):
    caplog.set_level(logging.DEBUG, logger="jrm.access")


@pytest.fixture
def url(tmp_path):
    path = tmp_path / "keys"
    path.write_text(Key("alice", digest(SECRET.encode())).line())
    backend = RaisingBackend(FakeBackend(), when=lambda candidate: candidate.instruction == "break")
    settings = Settings(backend="fake", api_keys_file=path, max_body_bytes=1_000_000)
    with servers.serving(settings, load=lambda: servers.fake_parts(backend)) as url:
        yield url


def post(url: str, *edits: str, instruction: str = INSTRUCTION, **headers: str) -> httpx.Response:
    headers = {"authorization": f"Bearer {SECRET}"} | headers
    request = {"groups": [{"source": RED, "instruction": instruction, "edits": list(edits)}]}
    return httpx.post(f"{url}/v1/score", json=request, headers=headers, timeout=60)


def lines(caplog, route: str = "/v1/score", *, wanted: int = 1) -> list[dict]:
    """The lines of a route. They are written when the reply is on its way, which may be read before."""
    while True:
        fields = [record.fields for record in list(caplog.records) if record.name == "jrm.access"]
        found = [one for one in fields if one["route"] == route]
        if len(found) >= wanted:
            return found


def test_a_request_that_was_scored(url, caplog):
    reply = post(url, BLUE, RED, **{"x-request-id": "step-7"})
    [line] = lines(caplog)
    usage, timings = reply.json()["usage"], reply.json()["timings_ms"]
    assert line["request_id"] == "step-7"
    assert (line["method"], line["status"], line["outcome"], line["key"]) == ("POST", 200, "ok", "alice")
    assert (line["candidates"], line["failed"], line["cached"]) == (2, 0, 0)
    assert {name: line[name] for name in ("images", "tokens", "tokens_computed")} == {
        name: usage[name] for name in ("images", "tokens", "tokens_computed")
    }
    for name in ("preprocess", "queue", "inference"):
        assert line[f"{name}_ms"] == timings[name]
    assert line["total_ms"] >= timings["total"]
    assert line["body_bytes"] == int(reply.request.headers["content-length"])


def test_some_candidates_fail(url, caplog):
    post(url, BLUE, "!!!")
    [line] = lines(caplog)
    assert (line["status"], line["outcome"], line["candidates"], line["failed"]) == (200, "partial", 2, 1)


def test_all_candidates_fail(url, caplog):
    post(url, BLUE, instruction="break")
    [line] = lines(caplog)
    assert (line["status"], line["outcome"], line["failed"]) == (500, "internal", 1)


@pytest.mark.parametrize(
    ("body", "secret", "status", "outcome"),
    [
        (b"{", SECRET, 400, "invalid_request"),
        (b"{}", "wrong", 401, "unauthorized"),
        (b"x" * 2_000_000, SECRET, 413, "payload_too_large"),
    ],
)
def test_a_refusal_is_told_by_its_code(url, caplog, body, secret, status, outcome):
    headers = {"authorization": f"Bearer {secret}", "content-type": "application/json"}
    httpx.post(f"{url}/v1/score", content=body, headers=headers, timeout=60)
    [line] = lines(caplog)
    assert (line["status"], line["outcome"]) == (status, outcome)
    assert line.get("key") == (None if status == 401 else "alice")
    assert "candidates" not in line


def test_what_is_of_no_route_is_unmatched(url, caplog):
    headers = {"authorization": f"Bearer {SECRET}"}
    httpx.get(f"{url}/etc/passwd?token=hunter2", headers=headers)
    httpx.request("BREW", f"{url}/v1/score", headers=headers)
    [line] = lines(caplog, "unmatched")
    assert (line["status"], line["outcome"]) == (404, "not_found")
    [line] = lines(caplog)
    assert (line["method"], line["status"]) == ("OTHER", 405)


def test_probes_are_quiet(url, caplog):
    httpx.get(f"{url}/health/live")
    assert lines(caplog, "/health/live")
    levels = {record.levelno for record in caplog.records if record.name == "jrm.access"}
    assert levels == {logging.DEBUG}


def test_a_caller_who_hangs_up(caplog):
    slow = SlowBackend(FakeBackend(), gated=True)

    async def hang_up(url: str) -> None:
        async with httpx.AsyncClient() as client:
            request = {"source": RED, "edited": BLUE, "instruction": INSTRUCTION}
            waiting = asyncio.create_task(client.post(f"{url}/v1/score", json=request, timeout=60))
            await asyncio.to_thread(slow.wait_entered)
            waiting.cancel()

    with servers.serving(load=lambda: servers.fake_parts(slow)) as url:
        asyncio.run(hang_up(url))
        [line] = lines(caplog)
        slow.open()
    assert (line["status"], line["outcome"], line["candidates"]) == (499, "client_disconnected", 1)


def test_nothing_secret_and_nothing_of_the_callers_own_is_logged(url, caplog):
    post(url, BLUE, "part:of-a-secret", instruction=INSTRUCTION)
    headers = {"authorization": f"Bearer {SECRET}", "cookie": "session=hunter2", "user-agent": "hedgehog"}
    body = {"source": RED, "edited": BLUE, "instruction": INSTRUCTION, INSTRUCTION: 1}
    httpx.post(f"{url}/v1/score?key={SECRET}", json=body, headers=headers)
    httpx.post(f"{url}/v1/score", json=body, headers={"authorization": "Bearer jrm_another-secret"})
    assert len(lines(caplog, wanted=3)) == 3
    text = "".join(f"{record.getMessage()} {vars(record)}" for record in caplog.records if record.name == "jrm.access")
    for word in ("secret", "hunter2", "hedgehog", "teapot", BLUE[:40]):
        assert word not in text
