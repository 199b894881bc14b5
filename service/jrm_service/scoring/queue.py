"""The queue's bookkeeping: every admitted candidate ends in exactly one outcome. Pure: the time is passed in.

An admitted index is first *empty* (being preprocessed), then *waiting* (in the planner), then *held* by a worker, and
at any moment it may become *finished*: scored, failed, expired or cancelled. The first outcome stands; later ones are
dropped. Identical candidates are computed once: see ``twins``. Seconds everywhere, on whatever clock the caller uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count

from jrm_service.errors import (
    CandidateError,
    DeadlineExceeded,
    Draining,
    InternalError,
    NotReady,
    NoWorker,
    Overloaded,
    PayloadTooLarge,
)

from .backend import Scored
from .outcomes import Cancelled, Origin, Outcome, shares, verdicts
from .places import Places
from .planner import BatchCost, Planner, unshared_tokens
from .promises import Promises
from .rates import DrainRate
from .twins import Twins
from .types import Candidate, Score

OnOutcome = Callable[[int, Outcome, float], None]
"""Called once per admitted index, with the index, its outcome and the time."""

OnScore = Callable[[Candidate, Score], None]
"""Called once per candidate that a backend scored, with what it scored, whether or not its caller still waits."""

# A caller that was told to come back in t seconds comes a little later: retries are spread, and the pace may drop.
_CLAIM_FACTOR = 2.0
_CLAIM_SECONDS = 10.0


def _ignore(_index: int, _outcome: Outcome, _now: float) -> None: ...


def _forget(_candidate: Candidate, _score: Score) -> None: ...


class Admission:
    """One request's places in the queue. Only the queue changes it."""

    def __init__(self, request: int, candidates: int, deadline: float, on_outcome: OnOutcome, tenant: str = "") -> None:
        self.request = request
        self.tenant = tenant
        self.deadline = deadline
        self.outcomes: list[Outcome | None] = [None] * candidates
        self.unfinished = candidates
        self.entries: dict[int, Entry] = {}
        self.on_outcome = on_outcome


@dataclass(slots=True, eq=False)
class Entry:
    """A candidate in the queue or on a device.

    ``started_at`` is when its batch last went to a device; ``tried_on`` the worker that was lost with it, if any;
    ``twins`` are the entries of identical candidates that wait for its score.
    """

    admission: Admission
    index: int
    candidate: Candidate
    put_at: float
    started_at: float | None = None
    tried_on: int | None = None
    twins: list[Entry] = field(default_factory=list)

    @property
    def request(self) -> int:
        """The request that it belongs to."""
        return self.admission.request

    @property
    def tenant(self) -> str:
        """Whose request it is."""
        return self.admission.tenant

    @property
    def finished(self) -> bool:
        """Whether it has its outcome."""
        return self.admission.outcomes[self.index] is not None

    @property
    def wanted(self) -> bool:
        """Whether anybody waits for its score: its own caller, or that of a twin."""
        return not self.finished or any(not twin.finished for twin in self.twins)


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
        on_score: is told of every score.
    """

    def __init__(
        self,
        *,
        max_batch_tokens: int,
        max_queue: int,
        cost: BatchCost = unshared_tokens,
        on_score: OnScore = _forget,
    ) -> None:
        self._planner: Planner[Entry] = Planner(max_batch_tokens, cost)
        self._places = Places(max_queue)
        self._promises = Promises(max_queue)
        self._twins: Twins[Entry] = Twins()
        self._on_score = on_score
        self._open: dict[int, Admission] = {}
        self._reserved: list[_Reserved] = []
        self._alive: set[int] = set()
        self._requests = count()
        self._drain = DrainRate()
        self._draining = False
        self._next_deadline: float | None = None

    @property
    def unfinished(self) -> int:
        """Candidates that are admitted and have no outcome."""
        return self._places.taken

    # --- callers ------------------------------------------------------------------------------------------------------

    def admit(
        self,
        candidates: int,
        now: float,
        deadline: float,
        on_outcome: OnOutcome = _ignore,
        tenant: str = "",
        request_id: str = "",
    ) -> Admission:
        """Reserve places for all candidates of a request of ``tenant``, or for none. Raises as ``check_room`` does."""
        self.check_room(candidates, now, tenant, request_id)
        if self.unfinished == 0:
            self._drain.resume(now)
        admission = Admission(next(self._requests), candidates, deadline, on_outcome, tenant)
        self._open[admission.request] = admission
        self._places.take(tenant, candidates)
        self._promises.settle(tenant, request_id)
        if self._next_deadline is None or deadline < self._next_deadline:
            self._next_deadline = deadline
        return admission

    def check_room(self, candidates: int, now: float, tenant: str = "", request_id: str = "") -> None:
        """Refuse a request of ``tenant`` that could not be admitted now; take nothing if it could.

        A request that was refused and comes back, with the same ``request_id``, when it was told to goes before others.

        Raises:
            PayloadTooLarge: so many could never fit.
            Draining: ``close`` was called.
            NotReady: no worker is alive.
            Overloaded: they do not fit now, or others have a claim to the room; ``retry_after`` is the seconds after
                which, at the measured drain rate, they fit and those who were told the same before them are in.
        """
        if candidates < 1:
            raise ValueError(f"a request has at least 1 candidate, got {candidates}")
        most = self._places.total
        if candidates > most:
            raise PayloadTooLarge(f"{candidates} candidates; the queue holds at most {most}: send fewer at once")
        self.check_open()
        self.expire(now)
        excess = self._places.excess(tenant, candidates, now)
        over = self._places.taken + candidates - most
        if excess > 0 or over + self._promises.kept(tenant, request_id, now) > 0:
            after = max(excess, over + self._promises.ahead(tenant, request_id, now))
            seconds = self._promises.make(tenant, request_id, candidates, self._drain.seconds_for(after, now), now)
            self._places.claim(tenant, candidates, now, until=now + _CLAIM_FACTOR * seconds + _CLAIM_SECONDS)
            raise Overloaded(
                f"{self.unfinished} of at most {most} candidates are queued; {candidates} more do not fit",
                retry_after=seconds,
            )

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
        lead = self._twins.lead(entry)
        if not self._alive:
            self._finish(admission, index, NoWorker("no worker is alive"), now)
        elif lead is None:
            self._twins.wait(entry)
            self._planner.add(entry)
        else:
            lead.twins.append(entry)
            entry.started_at = None if lead.started_at is None else now

    def recall(self, admission: Admission, index: int, score: Score, now: float) -> None:
        """A candidate's score is known already. Ignored when its index already has an outcome."""
        self._finish(admission, index, score, now, origin="stored")

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

        What it had ``started`` is retried once elsewhere; the second time it fails with an InternalError that says
        ``why``. What it had taken and not started goes back to the front. What no live worker can take fails at once
        with NoWorker, so nothing waits for ever. Twins share the fate of the one that leads them.
        """
        self._alive.discard(worker)
        self.release(unstarted)
        retried = []
        for entry in started:
            if entry.tried_on is not None:
                self._end(entry, InternalError(f"{why}; this was already its retry"), now)
            elif entry.wanted:
                entry.tried_on = worker
                retried.append(entry)
            else:
                self._twins.release(entry)
        if retried:
            self._reserved.insert(0, _Reserved(retried, avoid=worker))
        stranded = [reserved for reserved in self._reserved if not self._alive - {reserved.avoid}]
        self._reserved = [reserved for reserved in self._reserved if self._alive - {reserved.avoid}]
        entries = [entry for reserved in stranded for entry in reserved.entries]
        if not self._alive:
            entries += self._planner.clear()
        for entry in entries:
            lost = NoWorker(f"{why}, and no other worker is alive", on_device=entry.tried_on is not None)
            self._end(entry, lost, now)

    def take(self, worker: int, now: float, *, only_full: bool = False) -> list[Entry]:
        """Hand the next batch to a worker: what was given back first, then what the planner picks.

        Nobody who left or ran out of time is in it, unless a twin still waits for the score; identical candidates are
        in it once. With ``only_full``, no batch that later arrivals could still join.
        """
        self.expire(now)
        for reserved in [reserved for reserved in self._reserved if reserved.avoid != worker]:
            self._reserved.remove(reserved)
            entries = self._wanted(reserved.entries)
            if entries:
                return entries
        return self._leads(self._planner.take(only_full=only_full))

    def live(self, entries: Iterable[Entry], now: float) -> list[Entry]:
        """Those that still want a score."""
        self.expire(now)
        return self._wanted(entries)

    def start(self, entries: Iterable[Entry], now: float) -> None:
        """A batch goes to the device."""
        for entry in entries:
            for one in (entry, *entry.twins):
                one.started_at = now

    def release(self, entries: Iterable[Entry]) -> None:
        """Give back a batch that was taken and never started."""
        wanted = self._wanted(entries)
        if wanted:
            self._reserved.insert(0, _Reserved(wanted, avoid=wanted[0].tried_on))

    def settle(self, entries: Sequence[Entry], scored: Scored, seconds: float, now: float) -> None:
        """The backend answered for a batch that ran for ``seconds``. Late results for finished entries are dropped."""
        tokens = shares(scored.tokens_computed, [entry.candidate.tokens for entry in entries])
        for entry, result, share in zip(entries, verdicts(scored, len(entries)), tokens, strict=True):
            if isinstance(result, Score):
                self._on_score(entry.candidate, result)
            self._end(entry, result, now, seconds, share)
        self._drain.record(sum(1 + len(entry.twins) for entry in entries), now)

    def settle_error(self, entries: Sequence[Entry], error: CandidateError, seconds: float, now: float) -> None:
        """The batch ended in ``error``, all of it."""
        for entry in entries:
            self._end(entry, error, now, seconds)
        self._drain.record(sum(1 + len(entry.twins) for entry in entries), now)

    def _wanted(self, entries: Iterable[Entry]) -> list[Entry]:
        """Those of a worker's entries that somebody waits for; the others are let go of."""
        wanted = []
        for entry in entries:
            if entry.wanted:
                wanted.append(entry)
            else:
                self._twins.release(entry)
        return wanted

    def _leads(self, batch: Iterable[Entry]) -> list[Entry]:
        """One entry for each distinct candidate of a batch; its twins, wherever they wait, wait for its score now."""
        leads = []
        for entry in batch:
            twins = self._twins.take(entry)
            if twins is not None:
                for twin in twins:
                    self._planner.discard(twin)
                entry.twins = twins
                leads.append(entry)
        return leads

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

    def _end(
        self,
        lead: Entry,
        result: Score | CandidateError,
        now: float,
        seconds: float = 0.0,
        tokens_computed: int = 0,
    ) -> None:
        """What came of an entry, for itself and for its twins."""
        self._twins.release(lead)
        self._finish(lead.admission, lead.index, result, now, seconds, tokens_computed)
        for twin in lead.twins:
            self._finish(twin.admission, twin.index, result, now, seconds, origin="shared")

    def _finish(
        self,
        admission: Admission,
        index: int,
        result: Score | CandidateError,
        now: float,
        seconds: float = 0.0,
        tokens_computed: int = 0,
        origin: Origin = "computed",
    ) -> None:
        """The only place where an outcome comes into being: the first one stands."""
        if admission.outcomes[index] is not None:
            return
        entry = admission.entries.pop(index, None)  # its pixels need not outlive it
        queued = 0.0
        if entry is not None:
            self._planner.discard(entry)
            self._twins.forget(entry)
            queued = (now if entry.started_at is None else entry.started_at) - entry.put_at
        outcome = Outcome(result, queued * 1e3, seconds * 1e3, tokens_computed, origin)
        admission.outcomes[index] = outcome
        admission.unfinished -= 1
        self._places.free(admission.tenant)
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
