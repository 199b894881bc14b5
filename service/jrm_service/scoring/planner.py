"""Which candidates run next. Pure: no clock, no threads, no torch; the same history always gives the same batches.

Tenants wait in a line, in the order in which they began to wait, and so do the requests of each tenant. The first
request of the first tenant has its *turn*: its oldest candidate leads, followed by all candidates of its tenant that
share the lead's sources, if it has any (from any of the tenant's requests, since equal sources are computed once), then
its next oldest, and so on. A turn lasts for one budget's worth of candidates; then the request goes to the back of its
tenant's line. In the same way a tenant goes to the back of the tenants' line after one budget's worth. This is round
robin with a quantum of one batch, on two levels: requests that fit into a batch are served first come, first served, a
request of any size delays the ones behind it by about one batch at a time, and so does a tenant with any number of
requests. With a single tenant only the line of requests matters.

A batch is a prefix of that order, as long as the budget allows, so it may hold candidates of several tenants. Nothing
is skipped to fill a gap with something smaller: an expensive candidate waits no longer than a cheap one in its place.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Generic, Protocol, TypeVar

from .types import Candidate

BatchCost = Callable[[Sequence[Candidate]], int]
"""The tokens that a batch costs; called a few times per batch. Sharing may only save: the cost must not fall when a
candidate is appended, nor exceed the sum of the candidates' own costs."""


def unshared_tokens(candidates: Sequence[Candidate]) -> int:
    """The cost of a batch in which nothing is shared: the sum of ``Candidate.tokens``."""
    return sum(candidate.tokens for candidate in candidates)


class Queued(Protocol):
    """What the planner needs of an entry. Entries are compared by hash, which should be identity."""

    @property
    def request(self) -> int:
        """The request that it belongs to."""
        ...

    @property
    def tenant(self) -> str:
        """The tenant of the request: an opaque name, the same for all entries of a request."""
        ...

    @property
    def candidate(self) -> Candidate:
        """The candidate to be scored."""
        ...


EntryT = TypeVar("EntryT", bound=Queued)

# A dict is used as an ordered set: insertion order is age, and removal from the middle is O(1).
_Aged = dict[EntryT, int]


@dataclass(slots=True)
class _Lane(Generic[EntryT]):
    """The waiting entries of one tenant.

    ``line`` maps requests to their entries with their prices, and the first request has the turn; ``spent`` is the
    number of tokens that this turn has used.
    """

    line: dict[int, _Aged[EntryT]] = field(default_factory=dict)
    by_sources: dict[tuple[bytes, ...], _Aged[EntryT]] = field(default_factory=dict)
    spent: int = 0

    def add(self, entry: EntryT, price: int) -> None:
        self.line.setdefault(entry.request, {})[entry] = price
        if sources := entry.candidate.source_keys:
            self.by_sources.setdefault(sources, {})[entry] = price

    def remove(self, entry: EntryT) -> int | None:
        """The price of the entry that was removed; None if it is not here."""
        price = self.line.get(entry.request, {}).pop(entry, None)
        if price is None:
            return None
        if not self.line[entry.request]:
            if next(iter(self.line)) == entry.request:
                self.spent = 0
            del self.line[entry.request]
        if sources := entry.candidate.source_keys:
            del self.by_sources[sources][entry]
            if not self.by_sources[sources]:
                del self.by_sources[sources]
        return price


class Planner(Generic[EntryT]):
    """The waiting entries, and the rule that picks the next batch from them.

    Args:
        budget: tokens per batch, and per turn. A candidate that alone exceeds it still goes, by itself.
        cost: what a batch costs against the budget, in tokens.
    """

    def __init__(self, budget: int, cost: BatchCost = unshared_tokens) -> None:
        if budget < 1:
            raise ValueError(f"budget must be at least 1 token, got {budget}")
        self._budget = budget
        self._cost = cost
        self._lanes: dict[str, _Lane[EntryT]] = {}  # tenant -> its waiting entries; the first has the turn
        self._spent = 0  # tokens that the turn of the first tenant has used
        self._unshared = 0  # the sum of the prices of all waiting entries

    def __len__(self) -> int:
        return sum(len(entries) for lane in self._lanes.values() for entries in lane.line.values())

    def add(self, entry: EntryT) -> None:
        """Add a waiting entry. A tenant or a request with no other entries joins at the back of its line."""
        price = self._cost([entry.candidate])
        self._unshared += price
        if entry.tenant not in self._lanes:
            self._lanes[entry.tenant] = _Lane()
        self._lanes[entry.tenant].add(entry, price)

    def discard(self, entry: EntryT) -> None:
        """Forget an entry, because its caller left or it ran out of time. Unknown entries are ignored."""
        lane = self._lanes.get(entry.tenant)
        price = None if lane is None else lane.remove(entry)
        if lane is None or price is None:
            return
        self._unshared -= price
        if not lane.line:
            if next(iter(self._lanes)) == entry.tenant:
                self._spent = 0
            del self._lanes[entry.tenant]

    def clear(self) -> list[EntryT]:
        """Remove everything and return it, in line order."""
        requests = [entries for lane in self._lanes.values() for entries in lane.line.values()]
        self._lanes.clear()
        self._spent = self._unshared = 0
        return [entry for entries in requests for entry in entries]

    def take(self, *, only_full: bool = False) -> list[EntryT]:
        """Remove and return the next batch: empty when nothing waits, otherwise at least one entry.

        With ``only_full``, a batch that later arrivals could still join is not taken, and the result is empty.
        """
        if only_full and self._unshared < self._budget:
            return []  # asked after every arrival while the devices work, so the common answer must be cheap
        size, full = self._fitting()
        if size == 0 or (only_full and not full):
            return []
        walk = _Walk(self._lanes, self._budget, self._spent)
        batch = list(islice(walk, size))
        for entry in batch:
            self.discard(entry)
        for tenant, turns in walk.turns.items():
            if tenant in self._lanes:
                turns.leave(self._lanes[tenant])
        self._lanes = {tenant: self._lanes[tenant] for tenant in walk.line if tenant in self._lanes}
        self._spent = walk.spent if walk.line[0] in self._lanes else 0
        return batch

    def _fitting(self) -> tuple[int, bool]:
        """How many entries, in order, fit the budget; and whether the budget, not the supply, set the limit."""
        walk = iter(_Walk(self._lanes, self._budget, self._spent))
        candidates: list[Candidate] = []
        wanted = 1
        while True:  # doubling, then bisection: O(log n) calls of a cost function that may be expensive
            candidates += (entry.candidate for entry in islice(walk, wanted - len(candidates)))
            if len(candidates) < wanted or self._cost(candidates) > self._budget:
                break
            wanted *= 2
        if not candidates:
            return 0, False
        sizes = range(1, len(candidates) + 1)
        size = max(1, bisect_right(sizes, self._budget, key=lambda count: self._cost(candidates[:count])))
        return size, size < len(candidates) or self._cost(candidates[:size]) >= self._budget


class _Walk(Generic[EntryT]):
    """Walks all entries in serving order without changing the planner: tenants take turns.

    After the n-th entry, ``line`` and ``spent`` are what the planner's become if exactly these n are taken, except for
    tenants that have nothing left; ``turns`` has the same for each tenant that was reached.
    """

    def __init__(self, lanes: dict[str, _Lane[EntryT]], budget: int, spent: int) -> None:
        self.line = deque(lanes)
        self.spent = spent
        self.turns: dict[str, _Turns[EntryT]] = {}
        self._walks: dict[str, Iterator[tuple[EntryT, int]]] = {}
        self._lanes = lanes
        self._budget = budget

    def __iter__(self) -> Iterator[EntryT]:
        while self.line:
            # Only now, not when the budget was reached: a tenant that has joined since then goes first.
            if self.spent >= self._budget:
                self.line.rotate(-1)
                self.spent = 0
            tenant = self.line[0]
            if tenant not in self.turns:
                self.turns[tenant] = _Turns(self._lanes[tenant], self._budget)
                self._walks[tenant] = iter(self.turns[tenant])
            entry, price = next(self._walks[tenant], (None, 0))
            if entry is None:
                self.line.popleft()
                self.spent = 0
                continue
            self.spent += price
            yield entry


class _Turns(Generic[EntryT]):
    """Walks the entries of one tenant, with their prices, in serving order: its requests take turns."""

    def __init__(self, lane: _Lane[EntryT], budget: int) -> None:
        self._line = deque(lane.line)
        self._spent = lane.spent
        self._unread = {request: iter(entries) for request, entries in lane.line.items()}
        self._lane = lane
        self._budget = budget

    def __iter__(self) -> Iterator[tuple[EntryT, int]]:
        served: set[EntryT] = set()
        while self._line:
            if self._spent >= self._budget:  # only now, as above
                self._line.rotate(-1)
                self._spent = 0
            request = self._line[0]
            lead = next((entry for entry in self._unread[request] if entry not in served), None)
            if lead is None:
                self._line.popleft()
                self._spent = 0
                continue
            # The turn pays for all candidates that it pulls in, of whichever request: every turn is one budget of work.
            for entry in chain([lead], self._lane.by_sources.get(lead.candidate.source_keys, ())):
                if entry in served:
                    continue
                served.add(entry)
                price = self._lane.line[entry.request][entry]
                self._spent += price
                yield entry, price
                if self._spent >= self._budget:
                    break

    def leave(self, lane: _Lane[EntryT]) -> None:
        """Update the lane to the position of the walk; the entries that were walked must have been removed from it."""
        lane.line = {request: lane.line[request] for request in self._line if request in lane.line}
        lane.spent = self._spent if self._line[0] in lane.line else 0
