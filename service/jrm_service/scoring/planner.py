"""Which candidates run next. Pure: no clock, no threads, no torch; the same history always gives the same batches.

Requests stand in a line, in the order in which they began to wait. The one at the front has its *turn*: its oldest
candidate leads, followed by whatever shares the lead's source (from any request, since an equal source is computed
once), then its next oldest, and so on. A turn lasts for one budget's worth of candidates; then the request goes to the
back of the line. This is round robin with a quantum of one batch: requests that fit into a batch are served first come,
first served, and a request of any size delays the ones behind it by about one batch at a time.

A batch is a prefix of that order, as long as the budget allows. Nothing is skipped to fill a gap with something
smaller, so an expensive candidate waits no longer than a cheap one in its place.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from typing import Generic, Protocol, TypeVar

from .types import Candidate

BatchCost = Callable[[Sequence[Candidate]], int]
"""Tokens that a batch costs; called a few times per batch. Sharing may save, nothing else: it must not fall when a
candidate is appended, nor exceed the sum of what the candidates cost alone."""


def unshared_tokens(candidates: Sequence[Candidate]) -> int:
    """The cost of a batch in which nothing is shared: the sum of ``Candidate.tokens``."""
    return sum(candidate.tokens for candidate in candidates)


class Queued(Protocol):
    """What the planner reads of an entry. Entries are told apart by hash, so let that be identity."""

    @property
    def request(self) -> int:
        """The request that it belongs to."""
        ...

    @property
    def candidate(self) -> Candidate:
        """What is to be scored."""
        ...


EntryT = TypeVar("EntryT", bound=Queued)

# A dict is used as an ordered set: insertion order is age, and removal from the middle is O(1).
_Aged = dict[EntryT, int]


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
        self._line: dict[int, _Aged[EntryT]] = {}  # request -> its entries with their price; the first has the turn
        self._by_source: dict[bytes, _Aged[EntryT]] = {}
        self._spent = 0  # tokens that the turn of the first request has used
        self._unshared = 0  # the prices of all that waits

    def __len__(self) -> int:
        return sum(len(entries) for entries in self._line.values())

    def add(self, entry: EntryT) -> None:
        """Let an entry wait. A request with nothing else waiting joins at the back of the line."""
        price = self._cost([entry.candidate])
        self._unshared += price
        self._line.setdefault(entry.request, {})[entry] = price
        self._by_source.setdefault(entry.candidate.source.key, {})[entry] = price

    def discard(self, entry: EntryT) -> None:
        """Forget an entry, because its caller left or it ran out of time. Unknown entries are ignored."""
        entries = self._line.get(entry.request, {})
        if entry not in entries:
            return
        self._unshared -= entries.pop(entry)
        if not entries:
            if next(iter(self._line)) == entry.request:
                self._spent = 0
            del self._line[entry.request]
        source = entry.candidate.source.key
        del self._by_source[source][entry]
        if not self._by_source[source]:
            del self._by_source[source]

    def clear(self) -> list[EntryT]:
        """Remove everything and return it, in line order."""
        entries = [entry for lane in self._line.values() for entry in lane]
        self._line.clear()
        self._by_source.clear()
        self._spent = self._unshared = 0
        return entries

    def take(self, *, only_full: bool = False) -> list[EntryT]:
        """Remove and return the next batch: empty when nothing waits, otherwise at least one entry.

        With ``only_full``, a batch that later arrivals could still join is not taken, and the result is empty.
        """
        if only_full and self._unshared < self._budget:
            return []  # asked after every arrival while the devices work, so the common answer must be cheap
        size, full = self._fitting()
        if size == 0 or (only_full and not full):
            return []
        walk = _Walk(self._line, self._by_source, self._budget, self._spent)
        batch = list(islice(walk, size))
        for entry in batch:
            self.discard(entry)
        self._line = {request: self._line[request] for request in walk.line if request in self._line}
        self._spent = walk.spent if walk.line[0] in self._line else 0
        return batch

    def _fitting(self) -> tuple[int, bool]:
        """How many entries, in order, fit the budget; and whether the budget, not the supply, set the limit."""
        walk = iter(_Walk(self._line, self._by_source, self._budget, self._spent))
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
    """Walks all entries in serving order without changing the planner.

    After the n-th entry, ``line`` and ``spent`` are what the planner's become if exactly these n are taken, but for
    requests of which nothing is left.
    """

    def __init__(
        self, lanes: dict[int, _Aged[EntryT]], by_source: dict[bytes, _Aged[EntryT]], budget: int, spent: int
    ) -> None:
        self.line = deque(lanes)
        self.spent = spent
        self._unread = {request: iter(entries) for request, entries in lanes.items()}
        self._lanes = lanes
        self._by_source = by_source
        self._budget = budget

    def __iter__(self) -> Iterator[EntryT]:
        served: set[EntryT] = set()
        while self.line:
            # Only now, not when the budget was reached: whoever has joined since then goes first.
            if self.spent >= self._budget:
                self.line.rotate(-1)
                self.spent = 0
            request = self.line[0]
            lead = next((entry for entry in self._unread[request] if entry not in served), None)
            if lead is None:
                self.line.popleft()
                self.spent = 0
                continue
            # The turn pays for the mates that it pulls in, whoever owns them: so every turn is one budget of work.
            for entry in chain([lead], self._by_source[lead.candidate.source.key]):
                if entry in served:
                    continue
                served.add(entry)
                self.spent += self._lanes[entry.request][entry]
                yield entry
                if self.spent >= self._budget:
                    break
