"""The limits of each key, and of all callers together: concurrent requests, and candidates per minute."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from jrm_service.errors import Overloaded, RateLimited, RequestError

from .keys import Key

_KEEP = 0.8  # weight of the old mean when a request's duration is added to the mean behind Retry-After
_MOST_SECONDS = 60.0
GRACE = 1e-6  # candidates: a caller who comes back exactly after Retry-After must not fail by a rounding error


class CandidateQuota(Protocol):
    """Counts candidates per minute, for one process or for a fleet. Names are those of API keys."""

    async def spend(self, name: str, candidates: int, per_minute: int) -> float:
        """Take this many. Returns 0.0, or the seconds until they would be granted; then nothing was taken."""
        ...

    async def refund(self, name: str, candidates: int, per_minute: int) -> None:
        """Give back what was spent on a request that was refused after all."""
        ...


@dataclass(slots=True)
class TokenBucket:
    """A token bucket that holds one minute's worth and begins full. Pure.

    A request of more than a minute's worth is granted when the bucket is full, and leaves it in debt: large requests
    can pass, yet the rate holds over time. ``tokens`` is as of ``at``, in seconds of any clock.
    """

    tokens: float
    at: float

    def spend(self, candidates: int, per_minute: int, now: float) -> float:
        """Like CandidateQuota.spend, at the time ``now``."""
        self._fill(per_minute, now)
        lacking = min(candidates, per_minute) - self.tokens
        if lacking > GRACE:
            return lacking * 60.0 / per_minute
        self.tokens -= candidates
        return 0.0

    def refund(self, candidates: int, per_minute: int, now: float) -> None:
        """Give back; a bucket never holds more than a minute's worth."""
        self._fill(per_minute, now)
        self.tokens = min(per_minute, self.tokens + candidates)

    def _fill(self, per_minute: int, now: float) -> None:
        self.tokens = min(per_minute, self.tokens + max(0.0, now - self.at) * per_minute / 60.0)
        self.at = now


class LocalQuota:
    """The CandidateQuota of one process: with several servers, each grants the whole rate."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[str, TokenBucket] = {}

    async def spend(self, name: str, candidates: int, per_minute: int) -> float:
        """Take this many, or return the seconds until they would be granted."""
        return self._bucket(name, per_minute).spend(candidates, per_minute, self._clock())

    async def refund(self, name: str, candidates: int, per_minute: int) -> None:
        """Give back what was spent on a request that was refused after all."""
        self._bucket(name, per_minute).refund(candidates, per_minute, self._clock())

    def _bucket(self, name: str, per_minute: int) -> TokenBucket:
        return self._buckets.setdefault(name, TokenBucket(per_minute, self._clock()))


@asynccontextmanager
async def charged(quota: CandidateQuota, key: Key | None, candidates: int) -> AsyncIterator[None]:
    """Take a request's candidates from its key's quota; they are given back if a RequestError ends the block.

    Raises RateLimited, with the seconds after which they would be granted, before the block.
    """
    if key is None or key.candidates_per_minute is None:
        yield
        return
    per_minute = key.candidates_per_minute
    seconds = await quota.spend(key.name, candidates, per_minute)
    if seconds > 0.0:
        raise RateLimited(f"this key may send {per_minute} candidates per minute", retry_after=seconds)
    try:
        yield
    except RequestError:
        await quota.refund(key.name, candidates, per_minute)
        raise


class RequestSlots:
    """Bounds how many requests run at once, of one key and in all. Use from one event loop.

    Args:
        most: requests of all callers.
        clock: monotonic seconds.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._running: Counter[str] = Counter()
        self._mean_seconds: dict[str, float] = {}

    @contextmanager
    def hold(self, key: Key | None) -> Iterator[None]:
        """Let one more request run until the block ends.

        Raises, before the block, Overloaded when all callers together are at the limit, RateLimited when this key is
        at its own. ``retry_after`` estimates, from the durations of this key's recent requests, when one will end.
        """
        name = key.name if key else ""
        everyone = self._running.total()
        if everyone >= self._most:
            raise Overloaded(f"{everyone} requests at once", retry_after=self._wait(name, everyone))
        if key is not None and key.requests is not None and self._running[name] >= key.requests:
            wait = self._wait(name, self._running[name])
            raise RateLimited(f"this key may have {key.requests} requests at once", retry_after=wait)
        self._running[name] += 1
        started = self._clock()
        try:
            yield
        finally:
            self._running[name] -= 1
            took = self._clock() - started
            self._mean_seconds[name] = _KEEP * self._mean_seconds.get(name, took) + (1.0 - _KEEP) * took

    def _wait(self, name: str, running: int) -> float:
        """Expect the first of n requests of mean duration, begun at random moments, to end after 1/n of the mean."""
        return min(_MOST_SECONDS, self._mean_seconds.get(name, 1.0) / running)
