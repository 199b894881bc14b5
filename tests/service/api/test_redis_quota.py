"""A key's candidates per minute over several replicas: with a real server, without one, and with one that dies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from benchmarks import virtual_time
from jrm_service.api.keys import Key, digest
from jrm_service.api.limits import LocalQuota, TokenBucket
from jrm_service.api.redis_quota import RedisQuota
from jrm_service.metrics import Metrics
from jrm_service.redis_link import COOLDOWN_S, FAILURES, RedisLink
from jrm_service.settings import Settings
from service.api.test_sharing import as_json
from service.scoring.support import Clock, Counts
from support import redis_servers, servers
from support.servers import error_of

PATIENT = 30.0


class Replica:
    """One server's count of its keys; its own clock stands still."""

    def __init__(self, url: str, *, timeout_s: float = PATIENT, clock: Callable[[], float] | None = None) -> None:
        metrics = Metrics(CollectorRegistry())
        self.link = RedisLink(url, timeout_s=timeout_s, metrics=metrics, clock=clock or Clock())
        self.quota = RedisQuota(self.link, prefix="jrm:", metrics=metrics, local=LocalQuota(Clock()))
        self._counts = Counts(metrics)

    async def spend(self, candidates: int, per_minute: int = 1, name: str = "alice") -> float:
        return await self.quota.spend(name, candidates, per_minute)

    async def redis(self, *command: str | int) -> Any:
        return await self.link.call("test", lambda redis: redis.execute_command(*command))

    @property
    def fallbacks(self) -> float:
        return self._counts("jrm_quota_fallback_total")


@asynccontextmanager
async def replicas(url: str, count: int = 1, **options: Any) -> AsyncIterator[list[Replica]]:
    made = [Replica(url, **options) for _ in range(count)]
    try:
        yield made
    finally:
        for one in made:
            await one.link.close()


@pytest.fixture(scope="module")
def server():
    with redis_servers.real() as started:
        yield started


@pytest.fixture
def url(server):
    asyncio.run(_flush(server.connection_url))
    return server.connection_url


async def _flush(url: str) -> None:
    async with replicas(url) as [one]:
        await one.redis("FLUSHALL")


async def _kept(replica: Replica) -> tuple[float, int]:
    """Tokens, and the microsecond of the server's clock that they are as of."""
    tokens, at = await replica.redis("HMGET", "jrm:quota:alice", "tokens", "at")
    return float(tokens), int(at)


def test_replicas_share_one_quota_to_the_candidate(url):
    """Whatever two replicas grant together, of 1,200 that they are asked for, is what the bucket held and earned."""

    async def main() -> None:
        async with replicas(url, 2) as both:
            await both[0].spend(500, 1000)
            tokens, begun = await _kept(both[0])
            asked = [one.spend(1, 1000) for _ in range(600) for one in both]
            granted = sum(seconds == 0.0 for seconds in await asyncio.gather(*asked))
            left, ended = await _kept(both[0])
            assert granted + left == pytest.approx(tokens + (ended - begun) * 1000 / 60e6, abs=1e-6)
            assert left < 1.0
            assert [one.fallbacks for one in both] == [0, 0]

    asyncio.run(main())


def test_keys_do_not_share_a_quota(url):
    async def main() -> None:
        async with replicas(url) as [one]:
            assert await one.spend(1) == 0.0
            assert await one.spend(1) == pytest.approx(60.0, abs=10.0)
            assert await one.spend(1, name="bob") == 0.0

    asyncio.run(main())


def test_what_was_refused_after_all_is_given_back_to_all(url):
    async def main() -> None:
        async with replicas(url, 2) as [one, other]:
            assert await one.spend(1) == 0.0
            await one.quota.refund("alice", 1, 1)
            assert await other.spend(1) == 0.0
            assert await one.spend(1) > 0.0

    asyncio.run(main())


def test_a_bucket_is_forgotten_soon_after_it_is_full(url):
    async def main() -> None:
        async with replicas(url) as [one]:
            await one.spend(90, 60)
            assert 85_000 < await one.redis("PTTL", "jrm:quota:alice") <= 91_000

    asyncio.run(main())


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["spend", "spend", "refund"]), st.integers(1, 300), st.integers(0, 90_000_000)),
    max_size=20,
)


@given(OPERATIONS, st.integers(1, 200))
@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_redis_counts_as_a_bucket_does(url, operations, per_minute):
    """Step by step, with time that passes: a bucket's own time, moved back in Redis before each step."""

    async def main() -> None:
        async with replicas(url) as [one]:
            await one.redis("DEL", "jrm:quota:alice")
            bucket = TokenBucket(per_minute, 0.0)
            now = 0.0
            for operation, candidates, waited in operations:
                before = await one.redis("HGET", "jrm:quota:alice", "at")
                if before is not None:
                    await one.redis("HINCRBY", "jrm:quota:alice", "at", -waited)
                got = await getattr(one.quota, operation)("alice", candidates, per_minute)
                tokens, at = await _kept(one)
                now += 0.0 if before is None else (at - int(before) + waited) / 1e6
                wanted = getattr(bucket, operation)(candidates, per_minute, now)
                assert got == (wanted if wanted is None else pytest.approx(wanted, abs=1e-6))
                assert tokens == pytest.approx(bucket.tokens, abs=1e-6)

    asyncio.run(main())


# --- without Redis ---


def test_a_server_that_dies_leaves_each_replica_with_its_own_count():
    async def main(server: Any) -> None:
        clock = Clock()
        async with replicas(server.connection_url, clock=clock) as [one]:
            assert await one.spend(40, 60) == 0.0
            server.terminate()
            assert await one.spend(20, 60) == 0.0  # what the fleet had granted it counts for its own
            assert await one.spend(3, 60) == pytest.approx(3.0)
            await one.quota.refund("alice", 1, 60)
            assert one.fallbacks == 3
            server.start()
            clock.now += COOLDOWN_S
            assert await one.spend(60, 60) == 0.0  # a new server, whose buckets are full
            assert one.fallbacks == 3

    with redis_servers.real() as server:
        asyncio.run(main(server))


def test_one_that_never_answers_costs_its_timeout_until_nobody_asks_it_any_more():
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with (
            redis_servers.scripted() as (url, _),
            replicas(url, timeout_s=0.1, clock=loop.time) as [one],
        ):
            waited = []
            for _ in range(FAILURES + 1):
                before = loop.time()
                assert await one.spend(1, 60) == 0.0
                waited.append(loop.time() - before)
            assert waited == pytest.approx([0.1] * FAILURES + [0.0])
            assert one.fallbacks == FAILURES + 1

    virtual_time.run(main())


@pytest.mark.parametrize(
    "answer", [b"$3\r\nfoo\r\n", b"$2\r\n-1\r\n", b"$3\r\nnan\r\n", b"$3\r\ninf\r\n", b"-OOM no\r\n"]
)
def test_an_answer_that_is_no_time_to_wait_is_none(answer):
    async def main() -> None:
        async with redis_servers.scripted(2 * answer) as (url, _), replicas(url) as [one]:
            assert await one.spend(1) == 0.0
            assert await one.spend(1) == 60.0
            assert one.fallbacks == 2

    asyncio.run(main())


@pytest.mark.parametrize("command", [("SET", "jrm:quota:alice", "x"), ("HSET", "jrm:quota:alice", "tokens", "-inf")])
def test_garbage_under_the_name_of_a_bucket_is_not_believed(url, command):
    async def main() -> None:
        async with replicas(url) as [one]:
            await one.redis(*command)
            assert await one.spend(1) == 0.0
            assert await one.spend(1) == 60.0
            assert one.fallbacks == 2

    asyncio.run(main())


# --- through HTTP ---


def test_a_key_has_one_quota_at_two_servers(url, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text(Key("alice", digest(b"secret"), candidates_per_minute=2).line())
    options = Settings(backend="fake", api_keys_file=keys, redis_url=url, redis_timeout_s=10.0)
    headers = {"authorization": "Bearer secret"}
    with servers.serving(options) as one, servers.serving(options) as other:
        replies = [httpx.post(f"{at}/v1/score", **as_json("x"), headers=headers) for at in (one, other, one, other)]
        assert [reply.status_code for reply in replies] == [200, 200, 429, 429]
        assert error_of(replies[-1]) == (429, "rate_limited")
        assert 1 <= int(replies[-1].headers["retry-after"]) <= 30
