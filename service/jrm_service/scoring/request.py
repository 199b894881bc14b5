"""One caller's request: a future outcome for each of its candidates, and its deadline."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from itertools import count

from jrm_service.errors import CandidateError, DeadlineExceeded

from .outcomes import Cancelled, Outcome
from .types import Candidate

_numbers = count()


@dataclass(eq=False, slots=True)
class Entry:
    """One candidate of a request, from when it was parsed until its ``future`` has an outcome; the first one counts.

    ``prepared`` is None until the images are prepared, and again once the entry has ended, so that its pixels do not
    outlive it. Times are in seconds of the event loop's clock: ``put_at`` is when it was ready to be scored,
    ``started_at`` when its batch went to a device for the last time.
    """

    request: int
    tenant: str
    future: asyncio.Future[Outcome]
    prepared: Candidate | None = None
    put_at: float | None = None
    started_at: float | None = None
    ended_at: float | None = None

    @property
    def candidate(self) -> Candidate:
        """The candidate to be scored. Only for an entry that is in the queue."""
        assert self.prepared is not None
        return self.prepared

    def end(self, outcome: Outcome) -> None:
        """Set the candidate's outcome, unless it has one."""
        if not self.future.done():
            self.ended_at = self.future.get_loop().time()
            self.future.set_result(outcome)

    def fail(self, error: CandidateError) -> None:
        """Set an error as the candidate's outcome, unless it has one."""
        self.end(Outcome(error))

    @property
    def waits_for(self) -> str:
        """The stage of an unfinished candidate, as the end of a sentence about a deadline."""
        if self.put_at is None:
            return "before it was preprocessed"
        return "while it waited for a device" if self.started_at is None else "while a device was scoring it"


@dataclass(eq=False, slots=True)
class Request:
    """The candidates of one request of ``tenant``, group after group. ``deadline`` is on the event loop's clock."""

    tenant: str
    deadline: float
    groups: list[int]
    number: int = field(default_factory=lambda: next(_numbers))
    entries: list[Entry] = field(init=False)

    def __post_init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.entries = [Entry(self.number, self.tenant, loop.create_future()) for _ in range(sum(self.groups))]

    async def outcomes(self) -> list[Outcome]:
        """Wait for every candidate's outcome; those without one at the deadline end in DeadlineExceeded."""
        waiting = [entry.future for entry in self.entries]
        remaining = max(0.0, self.deadline - asyncio.get_running_loop().time())
        _, late = await asyncio.wait(waiting, timeout=remaining)
        if late:
            self.expire()
        return [future.result() for future in waiting]

    def expire(self) -> None:
        """End every unfinished candidate in DeadlineExceeded."""
        for entry in self.entries:
            entry.fail(DeadlineExceeded(f"timeout_ms passed {entry.waits_for}"))

    def cancel(self) -> None:
        """End every unfinished candidate because the caller left, so that it is dropped before it reaches a device."""
        for entry in self.entries:
            entry.fail(Cancelled("the caller left"))
