"""The queue's bookkeeping: every admitted candidate ends in exactly one outcome. Pure: the time is passed in.

An admitted index is first *empty* (being preprocessed), then *waiting* (in the planner), then *held* by a worker, and
at any moment it may become *finished*: scored, failed, expired or cancelled. The first outcome stands; later ones are
dropped. Seconds everywhere, on whatever clock the caller uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count

from jrm_service.errors import (
    CandidateError,
    DeadlineExceeded,
    Draining,
    InternalError,
    NotReady,
    Overloaded,
    PayloadTooLarge,
)

from .backend import Scored
from .outcomes import Cancelled, Outcome, shares, verdicts
from .planner import BatchCost, Planner, unshared_tokens
from .rates import DrainRate
from .types import Candidate, Score

OnOutcome = Callable[[int, Outcome, float], None]
"""Called once per admitted index, with the index, its outcome and the time."""


def _ignore(_index: int, _outcome: Outcome, _now: float) -> None: ...


class Admission:
    """One request's places in the queue. Only the queue changes it."""

    def __init__(self, request: int, candidates: int, deadline: float, on_outcome: OnOutcome) -> None:
        self.request = request
        self.deadline = deadline
        self.outcomes: list[Outcome | None] = [None] * candidates
        self.unfinished = candidates
        self.entries: dict[int, Entry] = {}
        self.on_outcome = on_outcome


@dataclass(slots=True, eq=False)
class Entry:
    """A candidate in the queue or on a device.

    ``started_at`` is when its batch last went to a device; ``tried_on`` the worker that was lost with it, if any.
    """

    admission: Admission
    index: int
    candidate: Candidate
    put_at: float
    started_at: float | None = None
    tried_on: int | None = None

    @property
    def request(self) -> int:
        """The request that it belongs to."""
        return self.admission.request

    @property
    def finished(self) -> bool:
        """Whether it has its outcome."""
        return self.admission.outcomes[self.index] is not None


@dataclass(frozen=True, slots=True)
class _Reserved:
    """Entries that go before all others, to any worker but ``avoid``."""

    entries: list[Entry]
    avoid: int | None


class ScoreQueue:
    """Admission, deadlines, cancellation, retries and outcomes around a Planner.

    Args:
        max_batch_tokens: the budget of one batch, as ``cost`` counts.
        max_queue: candidates that may be admitted and unfinished at once.
        cost: what a batch costs, in tokens.
    """

    def __init__(self, *, max_batch_tokens: int, max_queue: int, cost: BatchCost = unshared_tokens) -> None:
        if max_queue < 1:
            raise ValueError(f"max_queue must be at least 1 candidate, got {max_queue}")
        self._planner: Planner[Entry] = Planner(max_batch_tokens, cost)
        self._max_queue = max_queue
        self._open: dict[int, Admission] = {}
        self._reserved: list[_Reserved] = []
        self._alive: set[int] = set()
        self._requests = count()
        self._drain = DrainRate()
        self._draining = False
        self._next_deadline: float | None = None
        self.unfinished = 0

    # --- callers ------------------------------------------------------------------------------------------------------

    def admit(self, candidates: int, now: float, deadline: float, on_outcome: OnOutcome = _ignore) -> Admission:
        """Reserve places for all candidates of a request, or for none.

        Raises:
            PayloadTooLarge: so many could never fit.
            Draining: ``close`` was called.
            NotReady: no worker is alive.
            Overloaded: they do not fit now; ``retry_after`` is the seconds after which, at the measured drain rate,
                they would.
        """
        if candidates < 1:
            raise ValueError(f"a request has at least 1 candidate, got {candidates}")
        if candidates > self._max_queue:
            raise PayloadTooLarge(
                f"{candidates} candidates; the queue holds at most {self._max_queue}: send fewer at once"
            )
        self.check_open()
        self.expire(now)
        excess = self.unfinished + candidates - self._max_queue
        if excess > 0:
            raise Overloaded(
                f"{self.unfinished} of at most {self._max_queue} candidates are queued; {candidates} more do not fit",
                retry_after=self._drain.seconds_for(excess, now),
            )
        if self.unfinished == 0:
            self._drain.resume(now)
        admission = Admission(next(self._requests), candidates, deadline, on_outcome)
        self._open[admission.request] = admission
        self.unfinished += candidates
        if self._next_deadline is None or deadline < self._next_deadline:
            self._next_deadline = deadline
        return admission

    def check_open(self) -> None:
        """Raise the Draining or NotReady with which any request would be refused."""
        if self._draining:
            raise Draining("the server is shutting down", retry_after=1.0)
        if not self._alive:
            raise NotReady("no worker is alive", retry_after=1.0)

    def put(self, admission: Admission, index: int, candidate: Candidate, now: float) -> None:
        """A candidate is ready to be scored. Ignored when its index already has an outcome."""
        if admission.outcomes[index] is not None:
            return
        if index in admission.entries:
            raise ValueError(f"candidate {index} was already put")
        entry = Entry(admission, index, candidate, now)
        admission.entries[index] = entry
        if self._alive:
            self._planner.add(entry)
        else:
            self._finish(admission, index, InternalError("no worker is alive"), now)

    def fail(self, admission: Admission, index: int, error: CandidateError, now: float) -> None:
        """A candidate cannot be scored. Ignored when its index already has an outcome."""
        self._finish(admission, index, error, now)

    def cancel(self, admission: Admission, now: float) -> None:
        """The caller left: whatever is unfinished is dropped, and its places are free."""
        for index in range(len(admission.outcomes)):
            self._finish(admission, index, Cancelled("the caller left"), now)

    # --- time ---------------------------------------------------------------------------------------------------------

    @property
    def next_deadline(self) -> float | None:
        """When ``expire`` should be called next; it may be early, never late. None: nothing can expire."""
        return self._next_deadline

    def expire(self, now: float) -> None:
        """Fail every unfinished candidate whose deadline has come, wherever it is."""
        if self._next_deadline is None or now < self._next_deadline:
            return
        for admission in [admission for admission in self._open.values() if admission.deadline <= now]:
            for index in range(len(admission.outcomes)):
                self._finish(admission, index, DeadlineExceeded(_where(admission.entries.get(index))), now)
        self._next_deadline = min((admission.deadline for admission in self._open.values()), default=None)

    # --- workers ------------------------------------------------------------------------------------------------------

    def worker_up(self, worker: int) -> None:
        """A worker takes work from now on, for the first time or again."""
        self._alive.add(worker)

    def worker_lost(
        self, worker: int, started: Iterable[Entry], unstarted: Iterable[Entry], why: str, now: float
    ) -> None:
        """A worker takes no more work.

        What it had ``started`` is retried once elsewhere, or fails with an InternalError that says ``why``; what it had
        taken and not started goes back to the front. What no live worker can take fails at once, so nothing waits for
        ever.
        """
        self._alive.discard(worker)
        self.release(unstarted)
        retried = []
        for entry in started:
            if entry.tried_on is not None:
                self._finish(entry.admission, entry.index, InternalError(f"{why}; this was already its retry"), now)
            elif not entry.finished:
                entry.tried_on = worker
                retried.append(entry)
        if retried:
            self._reserved.insert(0, _Reserved(retried, avoid=worker))
        stranded = [reserved for reserved in self._reserved if not self._alive - {reserved.avoid}]
        self._reserved = [reserved for reserved in self._reserved if self._alive - {reserved.avoid}]
        entries = [entry for reserved in stranded for entry in reserved.entries]
        if not self._alive:
            entries += self._planner.clear()
        for entry in entries:
            self._finish(entry.admission, entry.index, InternalError(f"{why}, and no other worker is alive"), now)

    def take(self, worker: int, now: float, *, only_full: bool = False) -> list[Entry]:
        """Hand the next batch to a worker: what was given back first, then what the planner picks.

        Nobody who left or ran out of time is in it. With ``only_full``, no batch that later arrivals could still join.
        """
        self.expire(now)
        for reserved in [reserved for reserved in self._reserved if reserved.avoid != worker]:
            self._reserved.remove(reserved)
            entries = [entry for entry in reserved.entries if not entry.finished]
            if entries:
                return entries
        return self._planner.take(only_full=only_full)

    def live(self, entries: Iterable[Entry], now: float) -> list[Entry]:
        """Those that still want a score."""
        self.expire(now)
        return [entry for entry in entries if not entry.finished]

    def start(self, entries: Iterable[Entry], now: float) -> None:
        """A batch goes to the device."""
        for entry in entries:
            entry.started_at = now

    def release(self, entries: Iterable[Entry]) -> None:
        """Give back a batch that was taken and never started."""
        unfinished = [entry for entry in entries if not entry.finished]
        if unfinished:
            self._reserved.insert(0, _Reserved(unfinished, avoid=unfinished[0].tried_on))

    def settle(self, entries: Sequence[Entry], scored: Scored, seconds: float, now: float) -> None:
        """The backend answered for a batch that ran for ``seconds``. Late results for finished entries are dropped."""
        tokens = shares(scored.tokens_computed, [entry.candidate.tokens for entry in entries])
        for entry, result, share in zip(entries, verdicts(scored, len(entries)), tokens, strict=True):
            self._finish(entry.admission, entry.index, result, now, seconds, share)
        self._drain.record(len(entries), now)

    def settle_error(self, entries: Sequence[Entry], error: CandidateError, seconds: float, now: float) -> None:
        """The batch ended in ``error``, all of it."""
        for entry in entries:
            self._finish(entry.admission, entry.index, error, now, seconds)
        self._drain.record(len(entries), now)

    # --- the end ------------------------------------------------------------------------------------------------------

    @property
    def draining(self) -> bool:
        """Whether new requests are refused."""
        return self._draining

    def close(self) -> None:
        """Admit nothing more; what is admitted goes on."""
        self._draining = True

    def abandon(self, why: str, now: float) -> None:
        """Fail whatever is unfinished with an InternalError."""
        for admission in list(self._open.values()):
            for index in range(len(admission.outcomes)):
                self._finish(admission, index, InternalError(why), now)

    def _finish(
        self,
        admission: Admission,
        index: int,
        result: Score | CandidateError,
        now: float,
        seconds: float = 0.0,
        tokens_computed: int = 0,
    ) -> None:
        """The only place where an outcome comes into being: the first one stands."""
        if admission.outcomes[index] is not None:
            return
        entry = admission.entries.pop(index, None)  # its pixels need not outlive it
        queued = 0.0
        if entry is not None:
            self._planner.discard(entry)
            queued = (now if entry.started_at is None else entry.started_at) - entry.put_at
        outcome = Outcome(result, queued * 1e3, seconds * 1e3, tokens_computed)
        admission.outcomes[index] = outcome
        admission.unfinished -= 1
        self.unfinished -= 1
        if admission.unfinished == 0:
            del self._open[admission.request]
        admission.on_outcome(index, outcome, now)


def _where(entry: Entry | None) -> str:
    """What a candidate was waiting for when its time ran out."""
    if entry is None:
        return "timeout_ms passed before it was preprocessed"
    if entry.started_at is None:
        return "timeout_ms passed while it waited for a device"
    return "timeout_ms passed while a device was scoring it"
