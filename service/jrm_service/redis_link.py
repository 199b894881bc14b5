"""The connection to Redis: calls take a bounded time, and no failure of Redis fails a request."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from .breaker import Attempt, Circuit, CircuitBreaker
from .errors import RedisURLError
from .metrics import Metrics

T = TypeVar("T")

logger = logging.getLogger(__name__)

FAILURES = 3  # in a row; after that, no call waits for Redis until the cooldown is over
COOLDOWN_S = 1.0
MAX_COOLDOWN_S = 30.0
BACKGROUND_TIMEOUT_S = 1.0  # for calls that no request waits for


class Unavailable(Exception):
    """Redis did not answer in time, answered with an error, or was not asked because the circuit is open."""


class RedisLink:
    """Calls to Redis that take at most ``timeout_s`` seconds, connecting included, and fail at once on an open circuit.

    ::

        link = RedisLink("redis://127.0.0.1:6379/0", timeout_s=0.1, metrics=metrics)
        try:
            value = await link.call("get", lambda redis: redis.get("name"))
        except Unavailable:
            value = None

    It connects with the first call, again whenever the connection was lost, and never retries by itself: the caller
    continues without Redis. Values are bytes. Use it from one event loop.

    Args:
        url: ``redis://`` or, with TLS, ``rediss://``, with user, password and database.
        timeout_s: seconds.
        metrics: counts the calls, by operation and outcome.
        clock: monotonic seconds, for the circuit breaker.

    Raises:
        RedisURLError: the URL is invalid, or has an unknown option.
    """

    def __init__(
        self, url: str, *, timeout_s: float, metrics: Metrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.timeout_s = timeout_s
        self._metrics = metrics
        self._breaker = CircuitBreaker(
            failures=FAILURES, cooldown_s=COOLDOWN_S, max_cooldown_s=MAX_COOLDOWN_S, clock=clock
        )
        metrics.redis_breaker_state.set_function(lambda: self._breaker.state)
        try:
            self._redis: Redis = Redis.from_url(
                url,
                retry=Retry(NoBackoff(), 0),
                protocol=2,  # understood by every server, and without the handshake and the pushed messages of 3
            )
            # Does not connect, but shows whether all options of the URL exist.
            self._redis.connection_pool.make_connection()  # type: ignore[no-untyped-call]
        except (ValueError, TypeError):
            # Not the client's own message: it may quote the URL, and with it the password.
            problem = "redis_url: no client can be made from it; check its options, which follow the question mark"
            raise RedisURLError(problem) from None

    async def connect(self) -> None:
        """Connect before the first request. A Redis that does not answer is logged, and tried again later."""
        with suppress(Unavailable):
            await self.call("ping", lambda redis: redis.ping(), timeout_s=BACKGROUND_TIMEOUT_S)
            logger.info("Redis answers")
            return
        logger.warning("Redis does not answer; going on without it")

    async def call(self, operation: str, work: Callable[[Redis], Awaitable[T]], *, timeout_s: float | None = None) -> T:
        """Call ``work`` with the client and return its result; ``operation`` is its name in the metrics.

        ``timeout_s`` replaces the link's own. Raises Unavailable for any failure, an error reply included.
        """
        attempt = self._breaker.attempt()
        if attempt is None:
            self._count(operation, "skipped")
            raise Unavailable("skipped")
        try:
            async with asyncio.timeout(self.timeout_s if timeout_s is None else timeout_s):
                result = await work(self._redis)
        except ResponseError as error:  # it answered, and in time: out of memory, no permission, read-only replica
            self._succeeded(attempt)
            self._count(operation, "reply")
            raise Unavailable(type(error).__name__) from error
        except Exception as error:  # any error of the client or the network: no request may fail because of it
            self._failed(attempt, error)
            slow = isinstance(error, TimeoutError | RedisTimeoutError)
            self._count(operation, "timeout" if slow else "connection")
            raise Unavailable(type(error).__name__) from error
        except BaseException:
            self._breaker.abandoned(attempt)
            raise
        self._succeeded(attempt)
        self._count(operation, "ok")
        return result

    async def close(self) -> None:
        """Close the connections, within ``timeout_s``."""
        with suppress(Exception):
            async with asyncio.timeout(self.timeout_s):
                await self._redis.aclose(close_connection_pool=True)

    def _succeeded(self, attempt: Attempt) -> None:
        before = self._breaker.state
        self._breaker.succeeded(attempt)
        if before is not Circuit.CLOSED and self._breaker.state is Circuit.CLOSED:
            logger.info("Redis answers again")

    def _failed(self, attempt: Attempt, error: Exception) -> None:
        before = self._breaker.state
        self._breaker.failed(attempt)
        if before is Circuit.CLOSED and self._breaker.state is not Circuit.CLOSED:
            logger.warning("Redis: %s, %d times in a row; going on without it", type(error).__name__, FAILURES)

    def _count(self, operation: str, outcome: str) -> None:
        self._metrics.redis_calls.labels(operation, outcome).inc()
