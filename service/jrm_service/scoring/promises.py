"""Whoever was told when to come back finds room then. Pure: the time is passed in.

A request that does not fit is told in how many seconds it will. Among callers who all want the room that becomes free,
those who wait as they are told would lose it to newcomers again and again. So what a refused request was told is a
promise, by its id, and the places it needs are kept from newcomers of the same tenant (between tenants, see
``places``). What newcomers are told counts those who wait already: the line is outside of the queue, and in order.

Of the queue, at most half is kept for callers who are away: a device never runs dry for one who does not come back, and
a promise ends soon after its time.
"""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass

_MOST = 65_536  # promises at once; whoever comes after that is told a time, and nothing is kept
# Seconds are told in whole ones, rounded up, and callers are asked to spread: the SDK adds up to a tenth.
_LATE_FACTOR = 1.2
_LATE_SECONDS = 2.5


@dataclass(frozen=True, slots=True)
class _Promise:
    places: int
    due: float
    until: float


class Promises:
    """What refused requests were told, by tenant and request id. A request with the id ``""`` is nobody's.

    Args:
        total: places of the queue.
    """

    def __init__(self, total: int) -> None:
        self._most_kept = total // 2
        self._promises: dict[tuple[str, str], _Promise] = {}
        self._places: Counter[str] = Counter()
        self._ends: list[tuple[float, tuple[str, str]]] = []

    def ahead(self, tenant: str, request: str, now: float) -> int:
        """Places of the promises that come before this request: 0 when it was told to come by now, else all others."""
        self._end(now)
        own = self._promises.get((tenant, request))
        if own is None:
            return self._places[tenant]
        return 0 if own.due <= now else self._places[tenant] - own.places

    def kept(self, tenant: str, request: str, now: float) -> int:
        """Places that this request may not have, although they may be free."""
        return min(self.ahead(tenant, request, now), self._most_kept)

    def make(self, tenant: str, request: str, places: int, seconds: float, now: float) -> float:
        """Promise a refused request so many places in ``seconds``; returns the seconds to tell it.

        One that comes back too early is told what is left, and loses nothing by having asked.
        """
        if not request:
            return seconds
        name = tenant, request
        own = self._promises.get(name)
        if own is not None and own.due > now:
            seconds = min(seconds, own.due - now)
        elif own is None and len(self._promises) >= _MOST:
            return seconds
        self.settle(tenant, request)
        promise = _Promise(places, now + seconds, now + _LATE_FACTOR * seconds + _LATE_SECONDS)
        self._promises[name] = promise
        self._places[tenant] += places
        heapq.heappush(self._ends, (promise.until, name))
        return seconds

    def settle(self, tenant: str, request: str) -> None:
        """The request is in; nothing is kept for it any more."""
        promise = self._promises.pop((tenant, request), None)
        if promise is not None:
            self._places[tenant] -= promise.places
            if not self._places[tenant]:
                del self._places[tenant]

    def _end(self, now: float) -> None:
        while self._ends and self._ends[0][0] <= now:
            until, name = heapq.heappop(self._ends)
            promise = self._promises.get(name)
            if promise is not None and promise.until == until:  # else it was settled, or made anew
                self.settle(*name)
