"""Scores in Redis, with a real server that is full, evicts, dies and comes back, and with one that never answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from benchmarks import virtual_time
from jrm_service.breaker import Circuit
from jrm_service.metrics import Metrics
from jrm_service.redis_link import FAILURES, RedisLink
from jrm_service.scoring.cache import ScoreCache
from jrm_service.scoring.fakes import fake_score
from jrm_service.scoring.redis_store import RedisScores
from service.scoring.support import Clock, Counts, candidate
from support import redis_servers

PATIENT = 30.0
KEYS = [bytes([number // 256, number % 256]) for number in range(1024)]


class Store:
    """A RedisScores with its link and what was counted; ``client`` goes past both."""

    def __init__(self, url: str, timeout_s: float, clock: Callable[[], float], **options: Any) -> None:
        self.metrics = Metrics(CollectorRegistry())
        self.counts = Counts(self.metrics)
        self.link = RedisLink(url, timeout_s=timeout_s, metrics=self.metrics, clock=clock)
        self.scores = RedisScores(self.link, **({"prefix": "jrm:", "ttl_s": 60, "metrics": self.metrics} | options))

    async def client(self, *command: str | bytes | int) -> Any:
        return await self.link.call("test", lambda redis: redis.execute_command(*command))

    async def write(self, values: dict[bytes, bytes]) -> None:
        for key, value in values.items():
            self.scores.put(key, value)
        await self.scores.flush()

    def errors(self, reason: str) -> float:
        return self.counts("jrm_cache_errors_total", tier="redis", reason=reason)


@asynccontextmanager
async def store(
    url: str, timeout_s: float = PATIENT, clock: Callable[[], float] | None = None, **options: Any
) -> AsyncIterator[Store]:
    made = Store(url, timeout_s, clock or Clock(), **options)
    try:
        yield made
    finally:
        await made.scores.close()
        await made.link.close()


@pytest.fixture(scope="module")
def valkey():
    with redis_servers.real() as server:
        yield server


def test_what_was_put_is_found_by_another_replica(valkey):
    async def main() -> None:
        async with store(valkey.connection_url) as one, store(valkey.connection_url) as other:
            await one.write({b"key": b"\x00value\xff"})
            assert await other.scores.get(b"key") == b"\x00value\xff"
            assert await other.scores.get(b"other key") is None

    asyncio.run(main())


def test_keys_have_the_prefix_and_a_time_to_live(valkey):
    async def main() -> None:
        async with store(valkey.connection_url, prefix="team-a:", ttl_s=77) as made:
            await made.write({b"\x01\xff": b"value"})
            assert await made.client("KEYS", "team-a:*") == [b"team-a:score:01ff"]
            assert 0 < await made.client("TTL", "team-a:score:01ff") <= 77
        async with store(valkey.connection_url, prefix="team-b:") as other:
            assert await other.scores.get(b"\x01\xff") is None

    asyncio.run(main())


def test_lookups_of_a_request_share_round_trips(valkey):
    async def main() -> None:
        async with store(valkey.connection_url) as made:
            await made.write({key: b"value of " + key for key in KEYS})
            values = await asyncio.gather(*[made.scores.get(key) for key in KEYS + KEYS[:3]])
            assert values == [b"value of " + key for key in KEYS + KEYS[:3]]
            assert made.counts("jrm_redis_calls_total", operation="get", outcome="ok") <= 2
            assert made.counts("jrm_redis_calls_total", operation="set", outcome="ok") == 4  # pipelines of 256

    asyncio.run(main())


def test_a_value_of_another_type_is_none_and_is_replaced(valkey):
    async def main() -> None:
        async with store(valkey.connection_url) as made:
            await made.client("RPUSH", made.scores.name(b"list"), "x")
            assert await made.scores.get(b"list") is None
            await made.write({b"list": b"value"})
            assert await made.scores.get(b"list") == b"value"

    asyncio.run(main())


def test_garbage_is_a_miss_and_counted_and_replaced(valkey):
    async def main() -> None:
        one = candidate()
        async with store(valkey.connection_url) as made:
            cache = ScoreCache(["scope"], max_entries=0, metrics=made.metrics, store=made.scores)
            await made.client("SET", made.scores.name(cache.key(one)), b"\x80garbage")
            assert await cache.fetch(one) is None
            assert made.errors("invalid") == 1
            cache.remember(one, fake_score(one))
            await made.scores.flush()
            assert await cache.fetch(one) == fake_score(one)

    asyncio.run(main())


def test_a_full_server_still_answers_and_refusals_are_counted():
    async def main(url: str) -> None:
        async with store(url) as made:
            await made.write({b"early": b"value"})
            await made.client("CONFIG", "SET", "maxmemory", 1)
            await made.write(dict.fromkeys(KEYS[:10], b"value"))
            assert made.errors("write") == 10
            assert await made.scores.get(b"early") == b"value"
            assert made.counts("jrm_redis_breaker_state") == Circuit.CLOSED

    with redis_servers.real(maxmemory_policy="noeviction") as server:
        asyncio.run(main(server.connection_url))


def test_what_was_evicted_is_a_miss():
    async def main(url: str) -> None:
        async with store(url) as made:
            await made.write({key: key * 2000 for key in KEYS})
            found = await asyncio.gather(*[made.scores.get(key) for key in KEYS])
            assert made.counts("jrm_redis_breaker_state") == Circuit.CLOSED
            assert {value for key, value in zip(KEYS, found, strict=True) if value != key * 2000} == {None}
            assert any(found)
            assert made.errors("write") == made.errors("read") == 0

    with redis_servers.real(maxmemory="3mb", maxmemory_policy="allkeys-lru") as server:
        asyncio.run(main(server.connection_url))


def test_a_dead_server_is_a_miss_until_it_is_back():
    async def main(server: Any) -> None:
        clock = Clock()
        async with store(server.connection_url, clock=clock) as made:
            await made.write({b"key": b"value"})
            server.terminate()
            for _ in range(FAILURES + 1):
                assert await made.scores.get(b"key") is None
            await made.write({b"key": b"value"})
            assert made.errors("read") == FAILURES + 1
            assert made.errors("write") == 1
            server.start()
            clock.now += 60.0
            assert await made.scores.get(b"key") is None  # it has forgotten everything, and says so
            await made.write({b"key": b"value"})
            assert await made.scores.get(b"key") == b"value"
            assert made.errors("read") == FAILURES + 1

    with redis_servers.real() as server:
        asyncio.run(main(server))


def test_a_request_never_waits_longer_than_the_timeout():
    """Of one that never answers: a thousand lookups at once take 0.1 s, by a clock of their own, and then nothing."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with redis_servers.scripted() as (url, _), store(url, 0.1, loop.time) as made:
            waited = []
            for _ in range(FAILURES + 2):
                before = loop.time()
                assert await asyncio.gather(*[made.scores.get(key) for key in KEYS]) == [None] * len(KEYS)
                waited.append(loop.time() - before)
            assert waited[:FAILURES] == pytest.approx([0.1] * FAILURES)
            assert waited[FAILURES:] == [0.0, 0.0]
            assert made.errors("read") == len(KEYS) * (FAILURES + 2)

    virtual_time.run(main())


def test_a_lookup_behind_a_slow_one_does_not_wait_for_both():
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with redis_servers.scripted() as (url, _), store(url, 0.1, loop.time) as made:
            first = asyncio.create_task(made.scores.get(b"first"))
            await asyncio.sleep(0.06)  # of this loop's own clock, which takes no time
            before = loop.time()
            await made.scores.get(b"second")
            assert loop.time() - before == pytest.approx(0.1)
            assert await first is None

    virtual_time.run(main())


def test_writing_makes_nobody_wait_and_what_is_too_much_is_dropped():
    async def main() -> None:
        async with redis_servers.scripted() as (url, _), store(url, 0.1, max_unwritten=3) as made:
            before = asyncio.get_running_loop().time()
            for key in KEYS[:5]:
                made.scores.put(key, b"value")
            assert made.errors("dropped") == 2
            await made.scores.get(b"key")
            assert asyncio.get_running_loop().time() - before == pytest.approx(0.1)
            await made.scores.flush()
            assert made.errors("write") == 3

    virtual_time.run(main())


def test_closing_waits_a_little_for_what_is_unwritten(valkey):
    async def main() -> None:
        async with store(valkey.connection_url) as made:
            made.scores.put(b"last", b"value")
        async with store(valkey.connection_url) as other:
            assert await other.scores.get(b"last") == b"value"

    asyncio.run(main())
