"""The batcher: feeds the workers from the queue that all callers share, watches them, and restarts them.

The rules are in ``queue`` and ``planner``, which are pure, and the devices behind ``backend.Worker``. There is no fixed
wait: a batch is planned the moment a device is free, from the candidates that wait by then. While a device works, its
next batch is planned and sent ahead only if the waiting candidates already fill it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from jrm_service.errors import NotReady
from jrm_service.metrics import Metrics, begin

from .backend import SleepLevel, StartFailed, Worker, WorkerLost, WorkerResult
from .outcomes import LABELS
from .planner import BatchCost, unshared_tokens
from .queue import OnScore, ScoreQueue
from .rates import BusyShare
from .request import Entry
from .worker_slot import InFlightBatch, State, WorkerSlot

logger = logging.getLogger(__name__)

MAX_IN_FLIGHT = 2
"""Batches at a worker: one on the device, one being built."""
MOST_FAILED_STARTS = 5
_LONGEST_PAUSE_S = 30.0
STABLE_S = 60.0  # a worker that ran this long is restarted at once


class Batcher:
    """Scores the candidates of all requests in shared batches. Create and use it in one event loop only.

    A worker that is lost, or does not answer a batch within ``hang_timeout_s``, is ended and restarted, and the batch
    on its device is tried again: see ``ScoreQueue.worker_lost``. A batch that was not begun goes back to the front.

    Args:
        workers: one for each device.
        max_batch_tokens: the budget of a batch, as counted by ``cost``.
        hang_timeout_s: seconds from the begin of a batch after which its worker counts as hung.
        metrics: counts the work.
        clock: monotonic seconds; the event loop's own clock may have a resolution of milliseconds.
        cost: the tokens that a batch costs.
        on_score: called in the event loop with every candidate that a worker scored, even if its caller has left.
        on_drained: called in the event loop with the number of candidates that a device has finished.
        on_failed: called when a worker has failed to start MOST_FAILED_STARTS times in a row.
    """

    def __init__(
        self,
        workers: Sequence[Worker],
        *,
        max_batch_tokens: int,
        hang_timeout_s: float,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        cost: BatchCost = unshared_tokens,
        on_score: OnScore = lambda _candidate, _score: None,
        on_drained: Callable[[int], None] = lambda _candidates: None,
        on_failed: Callable[[BaseException], None] = lambda _error: None,
    ) -> None:
        if not workers:
            raise ValueError("a batcher needs at least one worker")
        self._clock = clock
        self._queue = ScoreQueue(max_batch_tokens=max_batch_tokens, cost=cost, on_score=on_score)
        self._slots = [WorkerSlot(number, worker, BusyShare(self._clock())) for number, worker in enumerate(workers)]
        self._hang_timeout_s = hang_timeout_s
        self._metrics = metrics
        self._cost = cost
        self._on_drained = on_drained
        self._on_failed = on_failed
        self._tasks: list[asyncio.Task[None]] = []
        self._resting = False  # asleep: nothing is taken from the queue
        metrics.watch_workers(batch_tokens=max_batch_tokens, alive=lambda: self.alive, workers=len(self._slots))
        for outcome in LABELS:
            begin(metrics.candidates, outcome)
        for slot in self._slots:
            labels = str(slot.number), slot.worker.device
            metrics.device_busy_ratio.labels(*labels).set_function(partial(self._busy_share, slot))
            for reason in ("hung", "lost"):
                begin(metrics.worker_failures, *labels, reason)

    def start(self) -> None:
        """Begin to feed the workers, which have been started already. Raises RuntimeError when called again."""
        if self._tasks or self._resting:
            raise RuntimeError("a batcher is started once")
        self._feed_all()

    async def stop(self, patience_s: float = 5.0) -> None:
        """End the workers; a batch on a device gets ``patience_s`` seconds to finish."""
        await self._leave_all()
        self._resting = False
        for slot in self._slots:
            slot.state = State.FAILED
        await asyncio.gather(*(slot.end(patience_s) for slot in self._slots))

    async def sleep(self, level: SleepLevel) -> SleepLevel:
        """Release every device once the batches that were sent to it are done; the queue is kept.

        Returns "host" if all workers keep their weights. A worker that is being started is ended, and so is one that
        cannot keep them. Calling it again with "drop" drops weights that were kept. Must not be called while ``sleep``
        or ``wake`` runs.
        """
        self._resting = True
        while answers := [batch.answer for slot in self._slots for batch in slot.in_flight]:
            await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.sleep(0)  # lets the feeding task settle them
        await self._leave_all()
        await asyncio.gather(*(slot.sleep(level) for slot in self._slots))
        return "host" if all(slot.keeps_weights for slot in self._slots) else "drop"

    async def wake(self) -> None:
        """Take the devices again, and continue with the queue. Must not be called while ``sleep`` or ``wake`` runs.

        Raises StartFailed when a device cannot be taken; all then stay asleep, with their weights dropped.
        """
        results = await asyncio.gather(*(slot.rouse() for slot in self._slots), return_exceptions=True)
        failures = [result for result in results if result is not None]
        if failures:
            await asyncio.gather(*(slot.sleep("drop") for slot in self._slots))
            raise failures[0]
        self._resting = False
        self._feed_all()

    def _feed_all(self) -> None:
        for slot in self._slots:
            slot.state = State.IDLE
        self._tasks = [asyncio.create_task(self._keep(slot), name=f"jrm-worker-{slot.number}") for slot in self._slots]

    async def _leave_all(self) -> None:
        """Stop feeding and watching the workers. Their running batches continue."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    # --- callers ------------------------------------------------------------------------------------------------------

    def put(self, entry: Entry) -> None:
        """Queue an entry whose candidate is prepared. Once its future is done it is dropped, wherever it is."""
        self._queue.put(entry, self._clock())
        entry.future.add_done_callback(lambda _future: self._queue.drop(entry))
        self._wake()

    @property
    def alive(self) -> int:
        """How many workers accept work."""
        return sum(slot.state.alive for slot in self._slots)

    @property
    def states(self) -> list[State]:
        """The state of each worker, in order."""
        return [slot.state for slot in self._slots]

    def check_ready(self) -> None:
        """Raise NotReady while no worker accepts work, unless all are asleep."""
        if not self.alive and not self._resting:
            raise NotReady("no worker is alive", retry_after=1.0)

    def _busy_share(self, slot: WorkerSlot) -> float:
        return slot.busy.at(self._clock())

    # --- one worker ---------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        """Signal that there may be work, to idle workers first: they can begin what would only be sent ahead."""
        idle = [slot for slot in self._slots if slot.state is State.IDLE]
        for slot in idle or self._slots:
            slot.wake.set()

    async def _keep(self, slot: WorkerSlot) -> None:
        """Feed a worker while it runs, then restart it, and so on."""
        quick_ends = 0  # short runs in a row
        while True:
            began = self._clock()
            try:
                reason = await self._feed(slot)
            except Exception:  # a bug here or in the cost function: callers must not wait for a worker without a feeder
                logger.exception("worker %d on %s: feeding it failed", slot.number, slot.worker.device)
                reason = "lost"
            await self._give_up(slot, reason)
            quick_ends = 0 if self._clock() - began > STABLE_S else quick_ends + 1
            if not await self._start_again(slot, quick_ends - 1):
                return

    async def _start_again(self, slot: WorkerSlot, quick_ends: int) -> bool:
        for pause in restart_pauses(quick_ends):
            await asyncio.sleep(pause)
            try:
                await slot.worker.start()
            except StartFailed as error:
                logger.error("worker %d on %s does not start: %s", slot.number, slot.worker.device, error)
                failure = error
            else:
                slot.state = State.IDLE
                logger.warning("worker %d on %s is back", slot.number, slot.worker.device)
                return True
        slot.state = State.FAILED
        self._on_failed(failure)
        return False

    async def _feed(self, slot: WorkerSlot) -> str:
        """Keep a worker supplied with batches. Returns the reason once it is gone: ``hung`` or ``lost``."""
        lost = slot.worker.lost
        while True:
            slot.wake.clear()
            self._fill(slot)
            woken = asyncio.create_task(slot.wake.wait())
            first = slot.in_flight[0] if slot.in_flight else None
            timeout = None if first is None else max(0.0, (first.begun or 0.0) + self._hang_timeout_s - self._clock())
            events: list[asyncio.Future[Any]] = [woken, lost, *([first.answer] if first else [])]
            try:
                done, _ = await asyncio.wait(events, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            finally:
                woken.cancel()
            if first is not None and first.answer.done():
                try:
                    answer = first.answer.result()
                except WorkerLost:
                    return "lost"
                self._settle(slot, answer)
            elif lost.done():
                return "lost"
            elif not done:
                return "hung"

    def _fill(self, slot: WorkerSlot) -> None:
        while len(slot.in_flight) < MAX_IN_FLIGHT and not self._resting:
            if slot.in_flight and any(other.state is State.IDLE for other in self._slots if other is not slot):
                break  # an idle worker begins the batch at once, and then wakes this one
            batch = self._queue.take(only_full=bool(slot.in_flight))
            if not batch:
                break
            candidates = [task.candidate for task in batch]
            sent = asyncio.create_task(slot.worker.score(candidates))
            slot.in_flight.append(InFlightBatch(batch, sent))
            if len(slot.in_flight) == 1:
                self._begin(slot)
        was, slot.state = slot.state, State.BUSY if slot.in_flight else State.IDLE
        if was is State.IDLE and slot.state is State.BUSY:
            self._wake()

    def _begin(self, slot: WorkerSlot) -> None:
        """Record that the oldest batch of a worker is on its device now."""
        now = self._clock()
        first = slot.in_flight[0]
        first.begun = now
        slot.busy.switch(True, now)
        self._queue.start(first.batch, now)
        self._metrics.observe_batch(
            candidates=len(first.batch),
            tokens=self._cost([task.candidate for task in first.batch]),
            waited=[
                now - entry.put_at for task in first.batch for entry in task.entries[:1] if entry.put_at is not None
            ],
        )

    def _settle(self, slot: WorkerSlot, answer: WorkerResult) -> None:
        """Record the answer for the oldest batch of a worker, whose next batch is on the device now."""
        done, now, device = slot.in_flight.popleft(), self._clock(), slot.worker.device
        slot.busy.switch(False, now)
        self._metrics.observe_run(slot.number, device, answer.seconds)
        tokens = sum(task.candidate.tokens for task in done.batch)
        self._metrics.observe_work(slot.number, device, tokens, answer.scored)
        self._metrics.batch_failures.inc(answer.failures)
        self._queue.settle(done.batch, answer.scored, answer.seconds, now)
        self._on_drained(sum(len(task.entries) for task in done.batch))
        if slot.in_flight:
            self._begin(slot)

    async def _give_up(self, slot: WorkerSlot, reason: str) -> None:
        """End a worker: its begun batch is tried again, and one that was sent ahead goes to the next free worker."""
        slot.state = State.STARTING
        now, device = self._clock(), slot.worker.device
        slot.busy.switch(False, now)
        begun = [sent.batch for sent in slot.in_flight if sent.begun is not None]
        ahead = [sent.batch for sent in slot.in_flight if sent.begun is None]
        logger.error(
            "worker %d on %s: %s with %d candidates on its device",
            slot.number,
            device,
            reason,
            sum(len(batch) for batch in begun),
        )
        self._metrics.worker_failures.labels(str(slot.number), device, reason).inc()
        for batch in ahead:
            self._queue.give_back(batch)
        for batch in begun:
            why = f"the worker on {device} {'hung' if reason == 'hung' else 'died'}"
            self._queue.worker_lost(batch, why, now)
        await slot.end()  # may be cancelled here without loss: all batches are back in the queue
        self._wake()


def restart_pauses(quick_ends: int = 0) -> Iterator[float]:
    """Yield the pause before each attempt to start a worker: 0, 1, 2, 4, … seconds; longer after short runs."""
    for attempt in range(quick_ends, quick_ends + MOST_FAILED_STARTS):
        yield 0.0 if attempt <= 0 else min(_LONGEST_PAUSE_S, 2.0 ** (attempt - 1))
