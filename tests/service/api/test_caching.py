"""The score cache through HTTP: what callers and other replicas see of it, whatever happens to Redis."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import threading

import httpx
import pytest

from jrm_service.breaker import Circuit
from jrm_service.scoring.fakes import FakeBackend, NaNBackend, RecordingBackend, SlowBackend
from jrm_service.settings import Settings
from service.api.test_sharing import EDITS, SOURCE, as_json, until
from support import redis_servers, servers
from support.servers import Metric, error_of

PATIENT = 10.0  # seconds: Redis may be slow here, because the machine is


def behind(url: str | None, **more) -> Settings:
    return Settings(backend="fake", redis_url=url, redis_timeout_s=PATIENT, **more)


def score_of(reply: httpx.Response) -> dict:
    """The score, but for whether it was cached."""
    assert reply.status_code == 200, reply.text
    score = reply.json()["groups"][0]["scores"][0]
    return {name: value for name, value in score.items() if name != "cached"}


def cached(reply: httpx.Response) -> bool:
    return reply.json()["groups"][0]["scores"][0]["cached"]


def test_a_score_is_computed_once_and_then_cached():
    recording = RecordingBackend(FakeBackend())
    with servers.serving(load=lambda: servers.fake_parts(recording)) as url:
        first, second = (httpx.post(f"{url}/v1/score", **as_json("x")) for _ in range(2))
        assert (cached(first), cached(second)) == (False, True)
        assert score_of(first) == score_of(second)
        assert second.json()["usage"]["tokens_computed"] == 0
        other = httpx.post(f"{url}/v1/score", **as_json("y"))
        assert not cached(other)
    assert len(recording.seen) == 2


def test_switched_off_every_score_is_computed():
    recording = RecordingBackend(FakeBackend())
    with servers.serving(Settings(cache_entries=0), load=lambda: servers.fake_parts(recording)) as url:
        assert not any(cached(httpx.post(f"{url}/v1/score", **as_json("x"))) for _ in range(2))
    assert len(recording.seen) == 2


def test_an_error_is_never_cached():
    nan = iter([True, False])
    backend = NaNBackend(FakeBackend(), when=lambda _: next(nan))
    with servers.serving(load=lambda: servers.fake_parts(backend)) as url:
        assert error_of(httpx.post(f"{url}/v1/score", **as_json("x"))) == (500, "non_finite_score")
        good = httpx.post(f"{url}/v1/score", **as_json("x"))
        assert not cached(good)
        assert score_of(httpx.post(f"{url}/v1/score", **as_json("x"))) == score_of(good)


def test_callers_with_the_same_candidate_share_one_computation_and_one_who_leaves_takes_nothing():
    slow = SlowBackend(FakeBackend(), gated=True)
    recording = RecordingBackend(slow)
    with servers.serving(load=lambda: servers.fake_parts(recording)) as url:

        async def run() -> None:
            async with httpx.AsyncClient(base_url=url, timeout=60) as client:
                async with httpx.AsyncClient(base_url=url, timeout=60) as other:
                    leaving = asyncio.create_task(other.post("/v1/score", **as_json("x")))
                    await asyncio.to_thread(slow.wait_entered)
                    staying = [asyncio.create_task(client.post("/v1/score", **as_json("x"))) for _ in range(3)]
                    await until(lambda: Metric(url)("jrm_preprocess_seconds_count") == 4)
                    leaving.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await leaving
                await until(lambda: Metric(url)("jrm_queue_depth") == 3)
                slow.open()
                replies = await asyncio.gather(*staying)
                assert len({str(score_of(reply)) for reply in replies}) == 1
                assert Metric(url)("jrm_cache_shared_total") == 3

        asyncio.run(run())
    assert len(recording.seen) == 1


def test_a_score_that_nobody_waited_for_is_there_for_the_next_try():
    slow = SlowBackend(FakeBackend(), gated=True)
    recording = RecordingBackend(slow)
    with servers.serving(load=lambda: servers.fake_parts(recording)) as url:

        async def run() -> None:
            async with httpx.AsyncClient(base_url=url, timeout=60) as client:
                leaving = asyncio.create_task(client.post("/v1/score", **as_json("x")))
                await asyncio.to_thread(slow.wait_entered)
                leaving.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await leaving
            await until(lambda: Metric(url)("jrm_queue_depth") == 0)
            slow.open()
            await until(lambda: Metric(url)("jrm_cache_entries") == 1)

        asyncio.run(run())
        assert cached(httpx.post(f"{url}/v1/score", **as_json("x")))
    assert len(recording.seen) == 1


def test_replicas_share_scores_through_redis():
    with redis_servers.real() as redis, servers.serving(behind(redis.connection_url)) as one:
        first = httpx.post(f"{one}/v1/score", **as_json("x"))
        written = Metric(one)
        asyncio.run(until(lambda: written("jrm_redis_calls_total") >= 3))  # ping, get, set
        recording = RecordingBackend(FakeBackend())
        with servers.serving(behind(redis.connection_url), load=lambda: servers.fake_parts(recording)) as unlike:
            # Another checkpoint's description: same fingerprint, but not the same engine.
            assert not cached(httpx.post(f"{unlike}/v1/score", **as_json("x")))
        with servers.serving(behind(redis.connection_url)) as other:
            second = httpx.post(f"{other}/v1/score", **as_json("x"))
            assert cached(second)
            assert score_of(second) == score_of(first)
            assert Metric(other)("jrm_batch_candidates_count") == 0


def test_killing_and_restarting_redis_under_load_loses_and_changes_nothing():
    """Four callers score the same candidates over and over, each without the help of its own server's memory."""
    bodies = [as_json("x", edit) for edit in EDITS[:8]]
    with servers.serving(Settings(backend="fake", cache_entries=0)) as alone:
        wanted = [score_of(httpx.post(f"{alone}/v1/score", **body)) for body in bodies]
    replies: list[tuple[int, httpx.Response]] = []
    stop = threading.Event()

    with redis_servers.real() as redis, servers.serving(behind(redis.connection_url, cache_entries=0)) as url:

        def call() -> None:
            with httpx.Client(timeout=60) as client:
                while not stop.is_set():
                    replies.extend((n, client.post(f"{url}/v1/score", **body)) for n, body in enumerate(bodies))

        def hits() -> float:
            lines = httpx.get(f"{url}/metrics").text.splitlines()
            return sum(
                float(line.split()[1]) for line in lines if line.startswith('jrm_cache_hits_total{tier="redis"}')
            )

        def more_hits() -> None:
            before = hits()
            asyncio.run(until(lambda: hits() > before))

        callers = [threading.Thread(target=call) for _ in range(4)]
        try:
            for caller in callers:
                caller.start()
            for _ in range(2):
                more_hits()
                redis.terminate()
                asyncio.run(until(lambda: Metric(url)("jrm_redis_breaker_state") == Circuit.OPEN))
                redis.start()
            more_hits()
        finally:
            stop.set()
            for caller in callers:
                caller.join(60)
    assert len(replies) >= len(callers) * len(bodies)
    assert all(score_of(reply) == wanted[number] for number, reply in replies)


@pytest.mark.parametrize("answer", [b"", b"-ERR no\r\n", b"$3\r\nfoo\r\n"])
def test_whatever_redis_says_a_score_is_a_score(answer, monkeypatch):
    for module in ("redis_link", "scoring.redis_store"):
        monkeypatch.setattr(f"jrm_service.{module}.BACKGROUND_TIMEOUT_S", 0.1)

    async def run() -> None:
        async with redis_servers.scripted(answer) as (redis_url, _):
            settings = Settings(backend="fake", redis_url=redis_url, redis_timeout_s=0.05)
            with servers.serving(settings) as url:
                async with httpx.AsyncClient(base_url=url, timeout=60) as client:
                    group = {"source": base64.b64encode(SOURCE).decode(), "instruction": "x"}
                    edits = [base64.b64encode(edit).decode() for edit in EDITS]
                    reply = await client.post("/v1/score", json={"groups": [group | {"edits": edits}]})
                    assert reply.status_code == 200
                    scores = reply.json()["groups"][0]["scores"]
                    assert [score["status"] for score in scores] == ["ok"] * len(EDITS)
                    assert not any(score["cached"] for score in scores)

    asyncio.run(run())
