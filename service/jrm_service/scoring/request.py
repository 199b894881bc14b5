"""One caller's request: a future for each of its candidates, and the moment until which it waits for them."""

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
    """One candidate of a request, from when it was parsed until its ``future`` has its outcome: the first one stands.

    ``candidate`` is None until the images are prepared and when it has ended, so that its pixels do not outlive it.
    Times are in seconds of the event loop's clock: ``put_at`` is when it was ready to be scored, ``started_at`` when
    the batch it is in went to a device for the last time.
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
        """What is to be scored. Only of an entry that is in the queue."""
        assert self.prepared is not None
        return self.prepared

    def end(self, outcome: Outcome) -> None:
        """The candidate's outcome, unless it has one."""
        if not self.future.done():
            self.ended_at = self.future.get_loop().time()
            self.future.set_result(outcome)

    def fail(self, error: CandidateError) -> None:
        """The candidate has no score, unless it has one."""
        self.end(Outcome(error))

    @property
    def waits_for(self) -> str:
        """What an unfinished candidate is waiting for, as the end of a sentence about a deadline."""
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
        """Wait for every candidate's outcome, until the deadline: what has none by then ends in DeadlineExceeded."""
        waiting = [entry.future for entry in self.entries]
        remaining = max(0.0, self.deadline - asyncio.get_running_loop().time())
        _, late = await asyncio.wait(waiting, timeout=remaining)
        if late:
            self.expire()
        return [future.result() for future in waiting]

    def expire(self) -> None:
        """The deadline has come: whatever is unfinished ends."""
        for entry in self.entries:
            entry.fail(DeadlineExceeded(f"timeout_ms passed {entry.waits_for}"))

    def cancel(self) -> None:
        """The caller left: whatever is unfinished is dropped before it reaches a device."""
        for entry in self.entries:
            entry.fail(Cancelled("the caller left"))
