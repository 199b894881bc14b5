"""The queue: which candidates wait, which are at a worker, and which batches are tried again. Pure.

An entry ends when its future is done, by a worker's answer, a deadline or a caller who left. The queue needs no
notice of it: it skips entries that have ended. Identical candidates, of one request or of many, are computed once:
each waits in its own place in line, and the first whose turn comes goes to a worker for all of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from jrm_service.errors import CandidateError, CandidateTooLarge, DeviceLost, DeviceMemoryTaken

from .backend import BatchResult
from .outcomes import Origin, Outcome, checked_results, shares
from .planner import BatchCost, Planner, unshared_tokens
from .request import Entry
from .types import Candidate, Score

OnScore = Callable[[Candidate, Score], None]
"""Called once per candidate that a worker scored, with its score, whether or not its caller still waits."""

MOST_TRIES = 3
"""How many workers may be lost with a candidate on the device: in its batch, in half of it, and alone."""

_Identity = tuple[tuple[bytes, ...], bytes, str]


@dataclass(eq=False, slots=True)
class Task:
    """One distinct candidate at a worker, and the entries that wait for it. ``lost_with``: workers lost with it."""

    candidate: Candidate
    entries: list[Entry]
    lost_with: int = 0

    @property
    def wanted(self) -> bool:
        """Whether a caller still waits for it."""
        return any(not entry.future.done() for entry in self.entries)


class ScoreQueue:
    """A Planner's waiting entries, the batches that are to be tried again, and the outcomes of batches.

    Args:
        max_batch_tokens: the budget of one batch, as counted by ``cost``.
        cost: what a batch costs, in tokens.
        on_score: called with every score.
    """

    def __init__(
        self,
        *,
        max_batch_tokens: int,
        cost: BatchCost = unshared_tokens,
        on_score: OnScore = lambda _candidate, _score: None,
    ) -> None:
        self._max_batch_tokens = max_batch_tokens
        self._cost = cost
        self._planner: Planner[Entry] = Planner(max_batch_tokens, cost)
        self._on_score = on_score
        self._waiting: dict[_Identity, dict[Entry, None]] = {}
        self._working: dict[_Identity, Task] = {}
        self._again: deque[list[Task]] = deque()

    def put(self, entry: Entry, now: float) -> None:
        """Add an entry whose candidate is prepared. An entry that has ended is ignored."""
        if entry.future.done():
            return
        entry.put_at = now
        task = self._working.get(_identity(entry.candidate))
        if task is not None:
            task.entries.append(entry)
            entry.started_at = None if task.entries[0].started_at is None else now
        else:
            self._waiting.setdefault(_identity(entry.candidate), {})[entry] = None
            self._planner.add(entry)

    def drop(self, entry: Entry) -> None:
        """Remove an entry that has ended, with its pixels. Unknown entries are ignored."""
        if entry.prepared is None:
            return
        self._planner.discard(entry)
        identity = _identity(entry.candidate)
        same = self._waiting.get(identity, {})
        same.pop(entry, None)
        if not same:
            self._waiting.pop(identity, None)
        entry.prepared = None

    def take(self, *, only_full: bool = False) -> list[Task]:
        """Return the next batch: first those to be tried again, then what the planner picks; empty if there is none.

        It has identical candidates once, and none whose callers have all left. With ``only_full``, no batch that later
        arrivals could still join.
        """
        while self._again:
            batch = self._wanted(self._again.popleft())
            if batch:
                return batch
        while True:
            entries = self._planner.take(only_full=only_full)
            batch = self._wanted([task for entry in entries if (task := self._begin(entry)) is not None])
            if batch or not entries:
                return batch

    def start(self, batch: Iterable[Task], now: float) -> None:
        """Record that a batch is on its device now."""
        for task in batch:
            for entry in task.entries:
                entry.started_at = now

    def settle(self, batch: Sequence[Task], scored: BatchResult, seconds: float, now: float) -> None:
        """Record a worker's answer for a batch that took ``seconds`` on its device. Late answers are dropped."""
        tokens = shares(scored.tokens_computed, [task.candidate.tokens for task in batch])
        for task, result, share in zip(batch, checked_results(scored, len(batch)), tokens, strict=True):
            if isinstance(result, Score):
                self._on_score(task.candidate, result)
            elif isinstance(result, DeviceMemoryTaken) and self._cost([task.candidate]) > self._max_batch_tokens:
                # It exceeds what a device was measured to hold. Below that, something else holds the memory for now.
                result = CandidateTooLarge(str(result))
            self._end(task, result, seconds, share, now)

    def give_back(self, batch: list[Task]) -> None:
        """Return a batch that was taken and never begun, in front of all others."""
        self._again.appendleft(batch)

    def worker_lost(self, batch: list[Task], why: str, now: float) -> None:
        """Record that a worker was lost with a batch on its device. Which candidate caused it, if any, is unknown.

        So the candidates are tried again in halves, and then one by one. One that was there when a worker was lost for
        the third time ends in DeviceLost.
        """
        for task in batch:
            task.lost_with += 1
        ended = [task for task in batch if task.lost_with >= MOST_TRIES]
        for task in ended:
            self._end(task, DeviceLost(f"{why}; it was tried {MOST_TRIES} times"), 0.0, 0, now)
        again = self._wanted(batch)
        size = max(1, -(-len(again) // 2)) if again and again[0].lost_with == 1 else 1
        self._again.extendleft(reversed([again[start : start + size] for start in range(0, len(again), size)]))

    # ------------------------------------------------------------------------------------------------------------------

    def _begin(self, entry: Entry) -> Task | None:
        """The task of an entry whose turn has come; None when it was taken with an identical one just before."""
        identity = _identity(entry.candidate)
        same = self._waiting.get(identity, {})
        if entry not in same:
            return None
        del self._waiting[identity]
        for other in same:
            self._planner.discard(other)
        others = [other for other in same if other is not entry]
        task = self._working[identity] = Task(entry.candidate, [entry, *others])
        return task

    def _wanted(self, batch: list[Task]) -> list[Task]:
        for task in batch:
            if not task.wanted:
                self._forget(task)
        return [task for task in batch if task.wanted]

    def _forget(self, task: Task) -> None:
        if self._working.get(_identity(task.candidate)) is task:
            del self._working[_identity(task.candidate)]

    def _end(self, task: Task, result: Score | CandidateError, seconds: float, tokens: int, now: float) -> None:
        """Give every entry of a task its outcome; the tokens count for the first entry."""
        self._forget(task)
        for number, entry in enumerate(task.entries):
            began = now if entry.started_at is None else entry.started_at
            queued = began - (began if entry.put_at is None else entry.put_at)
            origin: Origin = "computed" if number == 0 else "shared"
            entry.end(Outcome(result, queued * 1e3, seconds * 1e3, 0 if number else tokens, origin))


def _identity(candidate: Candidate) -> _Identity:
    return candidate.source_keys, candidate.edited.key, candidate.instruction
