"""Sleep, wake and reload over HTTP: who may, what requests do meanwhile, and that nothing overtakes anything."""

import asyncio
import json
import socket
import threading
import time
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from jrm_client import APIStatusError, APITimeoutError, AsyncJRMClient, JRMClient, ScoreError
from jrm_service.api.keys import Key, digest
from jrm_service.score_runtime import Parts
from jrm_service.scoring.fakes import FakeBackend, FakePreparer, SlowBackend
from jrm_service.settings import Settings
from support import servers
from support.pictures import encode, photo

SOURCE, EDIT = (encode(photo(40, 40, seed=seed)) for seed in (1, 2))
ADMIN = Settings(backend="fake", admin=True)


def post(url, path, **options):
    return httpx.post(f"{url}{path}", timeout=30, **options)


def state(url):
    return httpx.get(f"{url}/health/ready")


def slow(seconds):
    return lambda: Parts(servers.FAKE_MODEL, FakePreparer(), [SlowBackend(FakeBackend(), seconds=seconds)])


def test_without_admin_there_is_nothing_of_it():
    with servers.serving(Settings(backend="fake")) as url:
        for path in ("/v1/sleep", "/v1/wake", "/v1/reload"):
            reply = post(url, path, json={})
            assert (reply.status_code, reply.json()["error"]["code"]) == (404, "not_found"), path
        assert "/v1/sleep" not in httpx.get(f"{url}/openapi.json").json()["paths"]


def test_sleep_and_wake_say_what_is_in_force_and_may_be_repeated():
    with servers.serving(ADMIN) as url:
        levels = []
        for body in ({}, {"level": "host"}, {"level": "drop"}, {"level": "host"}):
            reply = post(url, "/v1/sleep", json=body)
            assert (reply.status_code, reply.json()["status"]) == (200, "sleeping")
            levels.append(reply.json()["level"])
        assert levels == ["host", "host", "drop", "drop"]
        assert post(url, "/v1/sleep").json()["level"] == "drop"  # no body at all
        for _ in range(2):
            reply = post(url, "/v1/wake").json()
            assert (reply["status"], reply["level"], reply["model"]) == ("ready", None, "jrm-fake")
        assert state(url).status_code == 200


def test_a_sleeping_server_is_alive_and_started_and_not_ready():
    with servers.serving(ADMIN) as url:
        post(url, "/v1/sleep")
        statuses = {path: httpx.get(f"{url}{path}").status_code for path in ("/health/live", "/health/startup")}
        assert set(statuses.values()) == {200}
        assert (state(url).status_code, state(url).json()["error"]["code"]) == (503, "sleeping")
        health = httpx.get(f"{url}/health")
        assert (health.status_code, health.json()) == (503, {"status": "sleeping", "rewards": {}})
        assert 'jrm_ready{part="score"} 0.0' in httpx.get(f"{url}/metrics").text
        assert httpx.get(f"{url}/v1/info").status_code == 200
        post(url, "/v1/wake")
        assert httpx.get(f"{url}/health").json()["status"] == "ok"


def test_requests_wait_for_the_wake_and_have_the_same_scores():
    with servers.serving(ADMIN) as url, JRMClient(url) as client, ThreadPoolExecutor(8) as pool:
        before = client.score(SOURCE, EDIT, "make it red")
        client.sleep()
        waiting = [pool.submit(client.score, SOURCE, EDIT, f"make it {n}") for n in range(7)]
        waiting.append(pool.submit(client.score, SOURCE, EDIT, "make it red"))
        time.sleep(0.3)
        assert not any(future.done() for future in waiting)
        client.wake()
        scores = [future.result(30) for future in waiting]
        assert scores[-1].reward == before.reward


def test_who_waits_does_not_keep_the_wake_out():
    """Every slot for requests is taken by those who wait."""
    settings = ADMIN.model_copy(update={"max_requests": 2, "max_bodies_bytes": 1})
    with servers.serving(settings) as url, JRMClient(url, max_retries=0) as client, ThreadPoolExecutor(2) as pool:
        client.sleep()
        waiting = [pool.submit(client.score, SOURCE, EDIT, f"make it {n}") for n in range(2)]
        time.sleep(0.3)
        client.wake()
        assert all(future.result(30).reward for future in waiting)


def test_who_cannot_wait_so_long_reads_that_the_time_is_over():
    with servers.serving(ADMIN) as url:
        post(url, "/v1/sleep")
        with (
            JRMClient(url, timeout=0.5, max_retries=0) as client,
            pytest.raises((APIStatusError, APITimeoutError)) as told,
        ):
            client.score(SOURCE, EDIT, "make it red")
        assert getattr(told.value, "code", "deadline_exceeded") == "deadline_exceeded"
        reply = post(url, "/v1/score", json={}, headers={"x-jrm-timeout-ms": "50"})
        assert (reply.status_code, reply.json()["error"]["code"]) == (504, "deadline_exceeded")


def test_requests_are_refused_where_the_setting_says_so():
    with servers.serving(ADMIN.model_copy(update={"when_sleeping": "refuse"})) as url:
        post(url, "/v1/sleep")
        with JRMClient(url, max_retries=0) as client, pytest.raises(APIStatusError) as refused:
            client.score(SOURCE, EDIT, "make it red")
        assert (refused.value.status, refused.value.code, refused.value.retry_after) == (503, "sleeping", 5)
        post(url, "/v1/wake")
        with JRMClient(url) as client:
            client.score(SOURCE, EDIT, "make it red")


@pytest.mark.parametrize("when_sleeping", ["wait", "refuse"])
def test_what_was_admitted_before_is_lost_in_neither_way(when_sleeping):
    settings = ADMIN.model_copy(update={"when_sleeping": when_sleeping, "max_batch_tokens": 1, "max_requests": 64})
    with (
        servers.serving(settings, load=slow(0.2)) as url,
        JRMClient(url) as client,
        ThreadPoolExecutor(6) as pool,
    ):
        waiting = [pool.submit(client.score, SOURCE, EDIT, f"make it {n}") for n in range(6)]
        time.sleep(0.3)
        client.sleep("drop")
        time.sleep(0.5)  # replies are on their way
        finished = sum(future.done() for future in waiting)
        assert finished == 6 if when_sleeping == "refuse" else finished < 6
        client.wake()
        assert len({future.result(30).reward for future in waiting}) == 6


def test_a_wake_does_not_overtake_the_sleep():
    device = SlowBackend(FakeBackend(), gated=True)
    parts = Parts(servers.FAKE_MODEL, FakePreparer(), [device])
    with servers.serving(ADMIN, load=lambda: parts) as url, JRMClient(url) as client, ThreadPoolExecutor(3) as pool:
        score = pool.submit(client.score, SOURCE, EDIT, "make it red")
        device.wait_entered()
        asleep = pool.submit(client.sleep)
        while state(url).status_code == 200:
            time.sleep(0.01)
        awake = pool.submit(client.wake)
        time.sleep(0.2)
        assert not asleep.done()  # the batch is on the device still
        assert not awake.done()
        device.open()
        for call in (asleep, awake):
            call.result(30)
        assert score.result(30).reward
        assert state(url).status_code == 200


def test_awake_is_a_block_and_sleeps_behind_an_error_too():
    with servers.serving(ADMIN) as url, JRMClient(url) as client:
        client.sleep("drop")
        with pytest.raises(ScoreError), client.awake():
            client.score_group(SOURCE, "make it red", [EDIT, b"no image"])
        assert state(url).json()["error"]["code"] == "sleeping"
        with pytest.raises(ValueError, match="level"):
            client.sleep("deep")

    async def main(url):
        async with AsyncJRMClient(url) as client, client.awake("drop"):
            return await client.score(SOURCE, EDIT, "make it red")

    with servers.serving(ADMIN) as url:
        assert asyncio.run(main(url)).reward
        assert state(url).json()["error"]["code"] == "sleeping"


def test_every_replica_is_told():
    with servers.serving(ADMIN) as one, servers.serving(ADMIN) as other, JRMClient([one, other]) as client:
        client.sleep()
        assert {state(url).json()["error"]["code"] for url in (one, other)} == {"sleeping"}
        client.wake()
        assert {state(url).status_code for url in (one, other)} == {200}


def test_a_key_needs_the_scope(tmp_path):
    keys = tmp_path / "keys.txt"
    lines = [Key("trainer", digest(b"jrm_scores")), Key("launcher", digest(b"jrm_admin"), scopes=("admin",))]
    keys.write_text("".join(key.line() + "\n" for key in lines))
    with servers.serving(ADMIN.model_copy(update={"api_keys_file": keys})) as url:
        for secret, status in ((None, 401), ("jrm_scores", 403), ("jrm_admin", 200)):
            headers = {} if secret is None else {"authorization": f"Bearer {secret}"}
            for path in ("/v1/sleep", "/v1/wake"):
                assert post(url, path, headers=headers).status_code == status, (secret, path)
        assert (
            post(
                url, "/v1/reload", json={"checkpoint": "x"}, headers={"authorization": "Bearer jrm_scores"}
            ).status_code
            == 403
        )


@pytest.mark.parametrize(
    ("body", "options", "status"),
    [
        (b'{"level": "deep"}', {}, 400),
        (b'{"levle": "host"}', {}, 400),
        (b'{"level": "host", "level": "drop"}', {}, 400),
        (b"[]", {}, 400),
        (b"{", {}, 400),
        (b"{}", {"content-encoding": "gzip"}, 415),
        (b" " * 70_000, {}, 413),
    ],
)
def test_a_body_that_is_not_understood_changes_nothing(body, options, status):
    with servers.serving(ADMIN) as url:
        reply = post(url, "/v1/sleep", content=body, headers={"content-type": "application/json", **options})
        assert reply.status_code == status
        assert state(url).status_code == 200


def test_a_page_of_another_origin_may_not_operate_the_server():
    with servers.serving(ADMIN) as url:
        for origin, status in (("http://elsewhere", 403), (url, 200)):
            for path in ("/v1/sleep", "/v1/wake"):
                assert post(url, path, headers={"origin": origin}).status_code == status, (origin, path)


def test_a_sleeping_server_says_so_to_trainers_probes():
    with servers.serving(ADMIN) as url:
        post(url, "/v1/sleep")
        assert "jrm_sleeping 1.0" in httpx.get(f"{url}/metrics").text
        assert httpx.get(f"{url}/rewards").json()["error"]["code"] == "sleeping"


def test_every_replica_is_heard_before_one_that_refuses_is_told_of():
    slow_one = ADMIN.model_copy(update={"max_batch_tokens": 1})
    with (
        servers.serving(Settings(backend="fake")) as other,
        servers.serving(slow_one, load=slow(1.0)) as url,
        JRMClient(url) as busy,
        JRMClient([other, url]) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        score = pool.submit(busy.score, SOURCE, EDIT, "make it red")
        time.sleep(0.3)
        with pytest.raises(APIStatusError) as refused:
            client.sleep()
        assert refused.value.status == 404
        assert refused.value.__notes__ == [f"{url}: done"]
        assert state(url).json()["error"]["code"] == "sleeping"
        busy.wake()
        score.result(30)


def test_awake_sleeps_behind_a_wake_that_failed():
    with servers.serving(Settings(backend="fake")) as other, servers.serving(ADMIN) as url:
        post(url, "/v1/sleep")
        with JRMClient([url, other]) as client, pytest.raises(APIStatusError), client.awake():
            pytest.fail("one of them is not awake")
        assert state(url).json()["error"]["code"] == "sleeping"


def test_a_sleep_is_refused_while_there_is_nothing_to_put_to_sleep():
    gate = threading.Event()

    def load():
        gate.wait(60)
        return servers.fake_parts()

    with servers.starting(ADMIN, load=load) as url:
        reply = post(url, "/v1/sleep")
        gate.set()
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "not_ready")


def test_a_request_whose_body_is_still_on_its_way_is_finished_by_what_it_came_to():
    """A server that refuses in its sleep waits for it first; so does the checkpoint that is replaced."""
    with servers.serving(ADMIN.model_copy(update={"when_sleeping": "refuse"})) as url, ThreadPoolExecutor(2) as pool:
        host, port = url.removeprefix("http://").split(":")
        body = json.dumps(
            {"source": b64encode(SOURCE).decode(), "edited": b64encode(EDIT).decode(), "instruction": "make it red"}
        ).encode()
        lines = ["POST /v1/score HTTP/1.1", "host: a", "content-type: application/json", f"content-length: {len(body)}"]
        with socket.create_connection((host, int(port)), timeout=30) as slow_caller:
            slow_caller.sendall("\r\n".join([*lines, "connection: close", "", ""]).encode() + body[:100])
            time.sleep(0.3)
            asleep = pool.submit(post, url, "/v1/sleep")
            time.sleep(0.3)
            assert not asleep.done()
            slow_caller.sendall(body[100:])
            reply = b""
            while piece := slow_caller.recv(65_536):
                reply += piece
        assert reply.startswith(b"HTTP/1.1 200")
        assert asleep.result(30).status_code == 200
