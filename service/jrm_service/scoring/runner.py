"""Runs one batch on one worker to its end, however the backend behaves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from jrm_service.errors import CandidateError, CandidateTooLarge, InternalError, NoMemory
from jrm_service.metrics import Metrics

from .backend import Scored
from .planner import BatchCost
from .queue import Entry, ScoreQueue
from .types import Candidate
from .worker import Failure, Finished, Job, Worker


class Hung(Exception):
    """A call has not come back within the hang timeout; ``call`` is done when it does after all."""

    def __init__(self, call: asyncio.Future[Finished[Any]]) -> None:
        super().__init__()
        self.call = call


class Died(Exception):
    """A call ended in WorkerLost, or in something that no backend should raise."""


class Runner:
    """The last steps of a batch: collated, stripped of who left, run, isolated when the backend raises, settled.

    Args:
        queue: where outcomes go.
        metrics: where batches are counted.
        clock: monotonic seconds.
        cost: tokens that a batch counts against the budget.
        hang_timeout_s: seconds after which one call of a backend counts as hung.
        max_batch_tokens: the budget of a batch, which fits the device unless something else takes its memory.
    """

    def __init__(
        self,
        queue: ScoreQueue,
        metrics: Metrics,
        clock: Callable[[], float],
        cost: BatchCost,
        hang_timeout_s: float,
        max_batch_tokens: int,
    ) -> None:
        self._queue = queue
        self._metrics = metrics
        self._clock = clock
        self._cost = cost
        self._hang_timeout_s = hang_timeout_s
        self._max_batch_tokens = max_batch_tokens

    async def run(self, worker: Worker, job: Job) -> None:
        """Give every entry of the job its outcome.

        A batch in which the backend raised is run again in halves, and so on until each culprit is alone: a bug that
        one candidate triggers fails that candidate, and a batch that was too large for the memory fits in pieces.

        Raises Hung and Died when the worker can take no more; entries without an outcome are then the caller's.
        """
        jobs = [job]
        while jobs:
            entries, finished = await self._attempt(worker, jobs.pop())
            now = self._clock()
            if finished.value is not None:
                tokens = sum(entry.candidate.tokens for entry in entries)
                self._metrics.observe_work(worker.number, worker.backend.device, tokens, finished.value)
                self._queue.settle(entries, finished.value, finished.seconds, now)
            elif finished.failure is not None:
                self._metrics.batch_failures.inc()
                if len(entries) > 1:
                    middle = len(entries) // 2
                    jobs += [worker.collate(entries[middle:]), worker.collate(entries[:middle])]
                else:
                    error = self._verdict(entries[0].candidate, finished.failure)
                    self._queue.settle_error(entries, error, finished.seconds, now)

    async def _attempt(self, worker: Worker, job: Job) -> tuple[list[Entry], Finished[Scored]]:
        """Run those of a batch who still want it; returns them, and what came of it."""
        collated = await self._watch(job.collating)
        while len(live := self._queue.live(job.entries, self._clock())) < len(job.entries):
            if not live:
                return [], Finished(None, None, 0.0)
            job = worker.collate(live)
            collated = await self._watch(job.collating)
        if collated.failure is not None:
            return live, Finished(None, collated.failure, 0.0)
        now = self._clock()
        self._queue.start(live, now)
        self._metrics.observe_batch(
            candidates=len(live),
            tokens=self._cost([entry.candidate for entry in live]),
            waited=[now - entry.put_at for entry in live],
        )
        worker.busy.switch(True, now)
        try:
            finished = await self._watch(worker.score(collated.value))
        finally:
            worker.busy.switch(False, self._clock())
        self._metrics.observe_run(worker.number, worker.backend.device, finished.seconds)
        return live, finished

    async def _watch(self, call: asyncio.Future[Finished[Any]]) -> Finished[Any]:
        await asyncio.wait({call}, timeout=self._hang_timeout_s)
        if not call.done():
            raise Hung(call)
        finished = call.result()
        if finished.failure is not None and finished.failure.lost:
            raise Died
        return finished

    def _verdict(self, alone: Candidate, failure: Failure) -> CandidateError:
        """What it means that the backend raised for a single candidate. Nothing of its own words is passed on."""
        if not failure.out_of_memory:
            return InternalError(f"the backend raised {failure.name}")
        tokens = alone.tokens
        if self._cost([alone]) > self._max_batch_tokens:
            return CandidateTooLarge(
                f"{tokens} tokens do not fit into the memory of the device, with no other candidate"
            )
        return NoMemory(f"the device has no memory left for {tokens} tokens, which it has room for otherwise")
