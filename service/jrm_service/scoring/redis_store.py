"""The score store in Redis that replicas share: lookups share round trips, and writes happen in the background."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any

from redis.asyncio import Redis

from jrm_service.metrics import Metrics
from jrm_service.redis_link import BACKGROUND_TIMEOUT_S, RedisLink, Unavailable

MAX_UNWRITTEN = 10_000  # a few megabytes
_WRITES_PER_CALL = 256
_FAILED = object()

_Answer = asyncio.Future[Any]


class RedisScores:
    """Implements ScoreStore. Use it from one event loop.

    Lookups that arrive during a round trip share the next MGET, so a request of a thousand candidates takes a few round
    trips. Each lookup takes at most ``link.timeout_s`` seconds. Values are written in the background, in pipelines of
    SET; at most ``max_unwritten`` wait, and further ones are dropped and counted.

    Args:
        link: the connection; it is not closed here.
        prefix: what the names of keys begin with.
        ttl_s: seconds after which a value expires in Redis.
        metrics: counts the errors.
        max_unwritten: the most values that may wait to be written.
    """

    def __init__(
        self, link: RedisLink, *, prefix: str, ttl_s: int, metrics: Metrics, max_unwritten: int = MAX_UNWRITTEN
    ) -> None:
        self._link = link
        self._prefix = f"{prefix}score:"
        self._ttl_s = ttl_s
        self._metrics = metrics
        self._max_unwritten = max_unwritten
        self._asked: dict[bytes, _Answer] = {}
        self._unwritten: deque[tuple[bytes, bytes]] = deque()
        self._reader: asyncio.Task[None] | None = None
        self._writer: asyncio.Task[None] | None = None

    async def get(self, key: bytes) -> bytes | None:
        """Return the value, or None if there is none or Redis did not answer in time."""
        answer = self._asked.get(key)
        if answer is None:
            answer = self._asked[key] = asyncio.get_running_loop().create_future()
        if self._reader is None or self._reader.done():
            self._reader = asyncio.create_task(self._read(), name="jrm-redis-read")
        await asyncio.wait({answer}, timeout=self._link.timeout_s)
        value = answer.result() if answer.done() else _FAILED
        if value is _FAILED:
            self._fail("read")
        return value if isinstance(value, bytes) else None

    def put(self, key: bytes, value: bytes) -> None:
        """Write the value in the background, or drop it if too many wait already."""
        if len(self._unwritten) >= self._max_unwritten:
            self._fail("dropped")
            return
        self._unwritten.append((key, value))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write(), name="jrm-redis-write")

    async def flush(self) -> None:
        """Wait until every value was written or has failed."""
        if self._writer is not None:
            await asyncio.wait({self._writer})

    async def close(self) -> None:
        """Give unwritten values a little time, then stop."""
        tasks = [task for task in (self._reader, self._writer) if task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=BACKGROUND_TIMEOUT_S)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def name(self, key: bytes) -> str:
        """The key's name in Redis."""
        return self._prefix + key.hex()

    async def _read(self) -> None:
        while self._asked:
            asked, self._asked = self._asked, {}
            names = [self.name(key) for key in asked]
            try:
                values = await self._link.call("get", partial(_get, names))
            except Unavailable:
                values = [_FAILED] * len(names)
            for answer, value in zip(asked.values(), values, strict=True):
                answer.set_result(value)

    async def _write(self) -> None:
        while self._unwritten:
            batch = [self._unwritten.popleft() for _ in range(min(_WRITES_PER_CALL, len(self._unwritten)))]
            try:
                failed = await self._link.call("set", partial(self._set, batch), timeout_s=BACKGROUND_TIMEOUT_S)
            except Unavailable:
                failed = len(batch)
            self._fail("write", failed)

    async def _set(self, batch: Sequence[tuple[bytes, bytes]], redis: Redis) -> int:
        """Write a batch, and return how many values Redis refused, for example because it is full."""
        async with redis.pipeline(transaction=False) as pipeline:
            for key, value in batch:
                pipeline.set(self.name(key), value, ex=self._ttl_s)
            replies = await pipeline.execute(raise_on_error=False)
        return sum(isinstance(reply, Exception) for reply in replies)

    def _fail(self, reason: str, count: int = 1) -> None:
        self._metrics.cache_errors.labels("redis", reason).inc(count)


async def _get(names: Sequence[str], redis: Redis) -> list[Any]:
    values: list[Any] = await redis.mget(names)
    if len(values) != len(names):
        raise ValueError(f"{len(values)} values for {len(names)} keys")
    return values
