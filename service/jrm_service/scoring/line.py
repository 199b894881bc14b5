"""The waiting line: a fair order in which tenants get room for bodies and places in the queue."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager

from jrm_service.errors import Overloaded

from .rates import DrainRate

_CAUTION = 1.25  # an estimate that is a little short would let in requests that end in a deadline
_LONGEST_RETRY_AFTER_S = 60.0
_MEAN_OF = 16  # requests, in the mean of their candidates


class FairSemaphore:
    """A bounded amount of something, such as places; callers wait in line while none is free. Use from one event loop.

    The line is fair queueing: the next request of each tenant is stamped with how much its tenant will have been
    granted by then since the line formed, and the smallest stamp goes first. So waiting tenants get equal amounts, a
    tenant that asks for little overtakes one that asks for much, and within a tenant requests go in order. A request
    that was cancelled does not count against its tenant. Nothing overtakes the head of the line to fill a gap, so
    small requests do not starve a large one.

    Args:
        total: how much there is. A larger amount is granted when nothing else is held: slow, not stuck.
    """

    def __init__(self, total: int) -> None:
        if total < 1:
            raise ValueError(f"a semaphore has at least 1 of something, got {total}")
        self.total = total
        self.held: Counter[str] = Counter()
        self.waiting: Counter[str] = Counter()
        self._lines: dict[str, dict[asyncio.Future[None], int]] = {}  # tenant -> its requests in order
        self._had: dict[str, int] = {}  # tenant -> how much it was granted; a tenant that joins starts level
        self._now = 0  # the highest stamp that was granted

    @property
    def in_use(self) -> int:
        """How much is held by all tenants."""
        return self.held.total()

    async def acquire(self, amount: int, tenant: str = "") -> int:
        """Wait in line for ``amount``, or for the total if that is less; returns the amount to be released."""
        amount = min(amount, self.total)
        if not self._lines and self.in_use + amount <= self.total:
            self.held[tenant] += amount
            return amount
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if tenant not in self._lines:
            self._lines[tenant] = {}
            self._had[tenant] = self._now
        self._lines[tenant][granted] = amount
        self.waiting[tenant] += amount
        self._grant()
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self.release(amount, tenant)  # granted and cancelled in the same tick
            else:
                self._leave(granted, tenant)
                self._grant()  # it may have been the head of the line
            raise
        return amount

    def release(self, amount: int, tenant: str = "") -> None:
        """Give back what ``acquire`` returned, or a part of it."""
        self.held[tenant] -= amount
        if not self.held[tenant]:
            del self.held[tenant]
        self._grant()

    def _grant(self) -> None:
        while self._lines:
            tenant = min(self._lines, key=self._stamp)
            granted, amount = next(iter(self._lines[tenant].items()))
            if granted.done():  # its caller has just left
                self._leave(granted, tenant)
                continue
            if self.in_use + amount > self.total:
                return
            self._leave(granted, tenant)
            self._had[tenant] += amount
            self._now = max(self._now, self._had[tenant])
            self.held[tenant] += amount
            granted.set_result(None)
        self._had.clear()
        self._now = 0

    def _stamp(self, tenant: str) -> int:
        return self._had[tenant] + next(iter(self._lines[tenant].values()))

    def _leave(self, granted: asyncio.Future[None], tenant: str) -> None:
        amount = self._lines.get(tenant, {}).pop(granted, None)
        if amount is None:
            return
        if not self._lines[tenant]:
            del self._lines[tenant]
        self.waiting[tenant] -= amount
        if not self.waiting[tenant]:
            del self.waiting[tenant]


class WaitingLine:
    """Where a request waits from its arrival until its candidates are in the queue. Use from one event loop.

    It waits for room for its body and, once that is read and parsed, for places for its candidates: both in fair order.
    A slow upload holds room for its body, and no places.

    Args:
        max_body_bytes: of all bodies at once.
        max_queue: candidates that may have a place at once, from when they were parsed until they have an outcome.
    """

    def __init__(self, *, max_body_bytes: int, max_queue: int) -> None:
        self._bodies = FairSemaphore(max_body_bytes)
        self._places = FairSemaphore(max_queue)
        self._unread: Counter[str] = Counter()  # requests whose bodies wait for room, or are on their way
        self._drain = DrainRate()
        self._mean_candidates = 1.0
        self._mean_of = 0  # requests so far, up to _MEAN_OF

    @property
    def places_taken(self) -> int:
        """Candidates that have a place."""
        return self._places.in_use

    @property
    def waiting(self) -> int:
        """Candidates that wait for a place, and requests whose bodies have not been read."""
        return self._places.waiting.total() + self._unread.total()

    def check(self, tenant: str, patience_s: float) -> None:
        """Refuse a request that would not get its scores in time; called once, before its body is read.

        Raises Overloaded; ``retry_after`` is when the work ahead will be small enough, at the measured rate.
        """
        if self._places.in_use == 0 and self.waiting == 0:
            return
        self._resume()
        now = asyncio.get_running_loop().time()
        wait = _CAUTION * self._drain.seconds_for(self._candidates_until_scored(tenant), now)
        if wait > patience_s:
            raise Overloaded(
                f"about {wait:.0f} s of work are waiting already, and the request may take {patience_s:.3g} s",
                retry_after=min(_LONGEST_RETRY_AFTER_S, max(1.0, wait - patience_s)),
            )

    @asynccontextmanager
    async def body(self, size: int, tenant: str) -> AsyncIterator[Callable[[], None]]:
        """Hold room for a body of ``size`` bytes until the block ends; waits in line for it.

        Yields a function to call once the body was read. Until then the request counts as ahead of later ones: all
        ranks of a training run send at the same moment, and each must see the others whose bodies are on their way.
        """
        self._resume()
        self._unread[tenant] += 1
        with ExitStack() as unread:
            unread.callback(self._unread.subtract, {tenant: 1})
            held = await self._bodies.acquire(size, tenant)
            try:
                yield unread.close
            finally:
                self._bodies.release(held, tenant)

    async def take_places(self, candidates: int, tenant: str) -> None:
        """Wait in line for the places of a request; each is given back with ``free_place``."""
        self._resume()
        self._mean_of = min(_MEAN_OF, self._mean_of + 1)
        self._mean_candidates += (candidates - self._mean_candidates) / self._mean_of
        await self._places.acquire(candidates, tenant)

    def free_place(self, tenant: str) -> None:
        """Give back the place of a candidate that has its outcome."""
        self._places.release(1, tenant)

    def drained(self, candidates: int) -> None:
        """Record that a device has finished this many candidates."""
        self._drain.record(candidates, asyncio.get_running_loop().time())

    def woken(self) -> None:
        """Record that the devices work again: the time in which they slept says nothing about their rate."""
        self._drain.resume(asyncio.get_running_loop().time())

    def _resume(self) -> None:
        """If no candidate has a place, leave out the time since the last score: the devices had nothing to do."""
        if self._places.in_use == 0:
            self._drain.resume(asyncio.get_running_loop().time())

    def _candidates_until_scored(self, tenant: str) -> float:
        """Candidates that devices score until a new request of ``tenant`` has its scores, its own included.

        Devices share their time equally between tenants: each other tenant has at most as many scored as this one.
        """
        own = self._outstanding(tenant) + self._mean_candidates
        others = (self._places.held.keys() | self._places.waiting.keys() | self._unread.keys()) - {tenant}
        return own + sum(min(own, self._outstanding(other)) for other in others)

    def _outstanding(self, tenant: str) -> float:
        places = self._places
        return places.held[tenant] + places.waiting[tenant] + self._unread[tenant] * self._mean_candidates
