"""One request's hold on the queue."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import TracebackType

from jrm_service.errors import CandidateError
from jrm_service.metrics import Metrics

from .outcomes import Outcome
from .queue import Admission, ScoreQueue
from .types import Candidate, Score


class Ticket:
    """The places of one request in the queue, from Batcher.admit. Leaving it as a context manager gives back the rest.

    ::

        with batcher.admit(2, timeout_s=30.0) as ticket:
            ticket.put(0, candidate)
            ticket.fail(1, InvalidImage("edits[1]: not a PNG, JPEG, WebP or PPM image"))
            outcomes = await ticket.outcomes()

    Use it from the event loop of its Batcher only; ``active`` and ``remaining`` may be read from any thread, so that
    preprocessing can skip work that nobody waits for.
    """

    def __init__(
        self,
        queue: ScoreQueue,
        metrics: Metrics,
        clock: Callable[[], float],
        *,
        candidates: int,
        timeout_s: float,
        groups: Sequence[int],
        tenant: str,
        request_id: str,
        on_put: Callable[[], None],
        on_done: Callable[[], None],
    ) -> None:
        now = clock()
        self._queue = queue
        self._metrics = metrics
        self._clock = clock
        self._on_put = on_put
        self._on_done = on_done
        self._group = [number for number, size in enumerate(groups) for _ in range(size)]
        self._left = list(groups)
        self._rewards: list[list[float]] = [[] for _ in groups]
        self._first_in: list[float | None] = [None] * len(groups)
        self._done = asyncio.Event()
        self.on_outcome: Callable[[int], None] = lambda _index: None
        """Called with each index as it gets its outcome, from inside the queue: it must not use the ticket."""
        self._admission: Admission = queue.admit(candidates, now, now + timeout_s, self._on_outcome, tenant, request_id)

    def put(self, index: int, candidate: Candidate) -> None:
        """Queue the candidate of an index in 0..candidates-1; ignored when the index already has an outcome.

        Raises IndexError for an index outside, ValueError for one that was already put.
        """
        now = self._enter(index)
        self._queue.put(self._admission, index, candidate, now)
        self._on_put()

    def recall(self, index: int, score: Score) -> None:
        """End an index with a score that was kept; ignored when it already has an outcome. Raises IndexError."""
        now = self._enter(index)
        self._queue.recall(self._admission, index, score, now)

    def fail(self, index: int, error: CandidateError) -> None:
        """End an index without a score; ignored when it already has an outcome. Raises IndexError as ``put`` does."""
        self._check(index)
        self._queue.fail(self._admission, index, error, self._clock())

    @property
    def active(self) -> bool:
        """Whether anything is still wanted: False once every candidate is finished, expired or cancelled."""
        return self._admission.unfinished > 0

    def remaining(self) -> float:
        """Seconds until the deadline, at least 0."""
        return max(0.0, self._admission.deadline - self._clock())

    async def outcomes(self) -> list[Outcome]:
        """Wait until every index has its outcome, at the latest at the deadline, and return them in order."""
        await self._done.wait()
        return [outcome for outcome in self._admission.outcomes if outcome is not None]

    def cancel(self) -> None:
        """Drop whatever is unfinished: it never reaches a device that it has not already reached."""
        self._queue.cancel(self._admission, self._clock())

    def __enter__(self) -> Ticket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def _enter(self, index: int) -> float:
        """A candidate is ready, at the time that is returned; the first of a group starts its clock."""
        self._check(index)
        now = self._clock()
        if self._group and self._first_in[self._group[index]] is None:
            self._first_in[self._group[index]] = now
        return now

    def _check(self, index: int) -> None:
        if not 0 <= index < len(self._admission.outcomes):
            raise IndexError(f"candidate {index} of {len(self._admission.outcomes)}")

    def _on_outcome(self, index: int, outcome: Outcome, now: float) -> None:
        try:
            self._observe(index, outcome, now)
            self.on_outcome(index)
        finally:  # whoever waits for this outcome has it, whatever is wrong with what was told of it
            if self._admission.unfinished == 0:
                self._done.set()
                self._on_done()

    def _observe(self, index: int, outcome: Outcome, now: float) -> None:
        self._metrics.candidates.labels(outcome.label).inc()
        if isinstance(outcome.result, Score):
            means = {name: dimension.mean for name, dimension in outcome.result.dimensions.items()}
            self._metrics.observe_score(outcome.result.reward, means)
        if outcome.label == "ok" and outcome.origin == "shared":
            self._metrics.cache_shared.inc()
        if self._group:
            self._count(self._group[index], outcome, now)

    def _count(self, group: int, outcome: Outcome, now: float) -> None:
        """A group is complete with its last outcome; one without any score has no completion time worth a look."""
        self._left[group] -= 1
        if isinstance(outcome.result, Score):
            self._rewards[group].append(outcome.result.reward)
        if self._left[group] > 0:
            return
        self._metrics.observe_spread(self._rewards[group])
        first_in = self._first_in[group]
        if self._rewards[group] and first_in is not None:
            self._metrics.observe_groups([now - first_in])
