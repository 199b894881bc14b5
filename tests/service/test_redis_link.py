"""The connection to Redis, with a real server and with ones that misbehave."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from benchmarks import virtual_time
from jrm_service.breaker import Circuit
from jrm_service.errors import RedisURLError
from jrm_service.metrics import Metrics
from jrm_service.redis_link import COOLDOWN_S, FAILURES, RedisLink, Unavailable
from service.scoring.support import Clock, Counts
from support import redis_servers

PATIENT = 30.0  # seconds: for what must work on a machine that is busy with something else


class Link:
    """A RedisLink and what it counted."""

    def __init__(self, url: str, *, timeout_s: float = PATIENT, clock: Callable[[], float] | None = None) -> None:
        metrics = Metrics(CollectorRegistry())
        self.link = RedisLink(url, timeout_s=timeout_s, metrics=metrics, clock=clock or Clock())
        self._counts = Counts(metrics)

    async def __aenter__(self) -> Link:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.link.close()

    async def get(self, name: str = "name") -> Any:
        return await self.link.call("get", lambda redis: redis.get(name))

    async def fails(self) -> None:
        with pytest.raises(Unavailable):
            await self.get()

    def calls(self, outcome: str) -> float:
        return self._counts("jrm_redis_calls_total", operation="get", outcome=outcome)

    @property
    def circuit(self) -> float:
        return self._counts("jrm_redis_breaker_state")


async def _blocked_clients(client: Any) -> int:
    return (await client.info("clients"))["blocked_clients"]


@pytest.fixture(scope="module")
def valkey():
    with redis_servers.real() as server:
        yield server


def test_values_are_bytes(valkey):
    async def main() -> None:
        async with Link(valkey.connection_url) as redis:
            await redis.link.call("set", lambda client: client.set("name", b"\xff\x00"))
            assert await redis.get() == b"\xff\x00"
            assert redis.calls("ok") == 1

    asyncio.run(main())


def test_one_that_never_answers_costs_its_timeout_until_the_circuit_opens_and_then_nothing():
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with redis_servers.scripted() as (url, _), Link(url, timeout_s=0.1, clock=loop.time) as redis:

            async def waited(calls: int = 1) -> float:
                before = loop.time()
                await asyncio.gather(*[redis.fails() for _ in range(calls)])
                return loop.time() - before

            assert [await waited() for _ in range(FAILURES)] == pytest.approx([0.1] * FAILURES)
            assert redis.circuit == Circuit.OPEN
            assert await waited(1000) == 0.0
            loop.now += COOLDOWN_S
            assert redis.circuit == Circuit.HALF_OPEN
            assert await waited(1000) == pytest.approx(0.1)  # one of them on trial
            assert await waited(1000) == 0.0
            assert redis.calls("timeout") == FAILURES + 1
            assert redis.calls("skipped") == 2999

    virtual_time.run(main())


def test_one_that_nobody_listens_for_is_unavailable():
    async def main() -> None:
        async with redis_servers.scripted() as (url, _):
            pass
        async with Link(url) as redis:
            for _ in range(FAILURES):
                await redis.fails()
            assert redis.calls("connection") == FAILURES
            assert redis.circuit == Circuit.OPEN

    asyncio.run(main())


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"$seven\r\n", b"*99999999999\r\n", b"\x00" * 999]
)
def test_one_that_speaks_another_language_is_unavailable(answer):
    async def main() -> None:
        async with redis_servers.scripted(answer) as (url, _), Link(url, timeout_s=0.1) as redis:
            await redis.fails()

    asyncio.run(main())


def test_an_error_reply_is_unavailable_but_no_reason_to_stop_asking(valkey):
    async def main() -> None:
        async with Link(valkey.connection_url) as redis:
            for _ in range(2 * FAILURES):
                with pytest.raises(Unavailable):
                    await redis.link.call("get", lambda client: client.execute_command("NO SUCH COMMAND"))
            assert redis.calls("reply") == 2 * FAILURES
            assert redis.circuit == Circuit.CLOSED

    asyncio.run(main())


def test_a_killed_server_is_found_again_when_it_is_back():
    async def main(server: Any) -> None:
        clock = Clock()
        async with Link(server.connection_url, clock=clock) as redis:
            assert await redis.get() is None
            server.terminate()
            for _ in range(FAILURES):
                await redis.fails()
            server.start()
            await redis.fails()
            assert redis.calls("skipped") == 1
            clock.now += COOLDOWN_S
            assert await redis.get() is None
            assert redis.circuit == Circuit.CLOSED

    with redis_servers.real() as server:
        asyncio.run(main(server))


def test_a_restart_between_two_calls_is_not_noticed_or_only_once():
    async def main(server: Any) -> None:
        async with Link(server.connection_url) as redis:
            assert await redis.get() is None
            server.terminate()
            server.start()
            try:
                assert await redis.get() is None
            except Unavailable:
                assert await redis.get() is None
            assert redis.circuit == Circuit.CLOSED

    with redis_servers.real() as server:
        asyncio.run(main(server))


def test_a_caller_who_leaves_does_not_leave_its_reply_to_the_next(valkey):
    async def main() -> None:
        async with Link(valkey.connection_url) as redis:
            await redis.link.call("set", lambda client: client.set("mine", b"mine"))
            leaving = asyncio.create_task(redis.link.call("get", lambda client: client.blpop(["list"], timeout=0)))
            while not await redis.link.call("info", _blocked_clients):  # the reply itself is the wait
                pass
            leaving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaving
            await redis.link.call("set", lambda client: client.rpush("list", b"not mine"))
            assert await redis.get("mine") == b"mine"
            assert redis.circuit == Circuit.CLOSED

    asyncio.run(main())


def test_the_password_opens_and_never_shows(caplog):
    async def main(server: Any) -> None:
        async with Link(server.connection_url) as redis:
            await redis.link.call("config", lambda client: client.config_set("requirepass", "s3cret"))
        address = server.connection_url.removeprefix("redis://")
        async with Link(f"redis://:s3cret@{address}") as redis:
            assert await redis.get() is None
        async with Link(f"redis://:wr0ng@{address}") as redis:
            await redis.link.connect()
            for _ in range(FAILURES):
                await redis.fails()
        assert "Redis does not answer" in caplog.text
        assert "s3cret" not in caplog.text
        assert "wr0ng" not in caplog.text

    caplog.set_level(logging.DEBUG)
    with redis_servers.real() as server:
        asyncio.run(main(server))


def test_rediss_is_tls():
    async def main() -> None:
        async with redis_servers.scripted() as (url, received):
            async with Link(url.replace("redis:", "rediss:"), timeout_s=0.1) as redis:
                await redis.fails()
            assert received[:2] == b"\x16\x03"  # a TLS handshake

    virtual_time.run(main())


@pytest.mark.parametrize("option", ["no_such_option=1", "socket_timeout=soon"])
def test_an_option_that_there_is_not_is_refused_without_quoting_the_url(option):
    with pytest.raises(RedisURLError, match="redis_url: no client") as error:
        Link(f"redis://:s3cret@localhost/0?{option}")
    assert "s3cret" not in str(error.value)
    assert error.value.__suppress_context__
