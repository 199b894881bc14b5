"""The one queue of all callers, in asyncio: feeds the workers, watches them, and starts them again.

The rules live in ``queue`` and ``planner``, which are pure; the device lives behind ``backend.Worker``; here the two
meet. There is no fixed wait: a batch is planned the moment a device is free, from whatever has gathered by then. While
a device works, its next batch is fixed and sent ahead only if the waiting candidates already fill it.
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

from .backend import Answer, SleepLevel, StartFailed, Worker, WorkerLost
from .fed import Fed, State, UnderWay
from .outcomes import LABELS
from .planner import BatchCost, unshared_tokens
from .queue import OnScore, ScoreQueue
from .rates import BusyShare
from .request import Entry

logger = logging.getLogger(__name__)

UNDER_WAY = 2
"""Batches at a worker: one on the device, one being built."""
MOST_FAILED_STARTS = 5
_LONGEST_PAUSE_S = 30.0
STABLE_S = 60.0  # a worker that lived so long is started again at once


class Batcher:
    """Scores the candidates of all requests in shared batches. Create and use it in one event loop only.

    A worker that is silent about a batch for ``hang_timeout_s``, or lost, is ended and started again, and what was on
    its device is tried again: see ``ScoreQueue.worker_lost``. What it had not begun goes back to the front.

    Args:
        workers: one for each device.
        max_batch_tokens: the budget of a batch, as ``cost`` counts.
        hang_timeout_s: seconds from a batch's begin after which its worker counts as hung.
        metrics: where everything is counted.
        clock: monotonic seconds; the event loop's own may count in whole milliseconds.
        cost: tokens that a batch costs.
        on_score: called in the event loop with every candidate that a worker scored, also when its caller has left.
        on_drained: called in the event loop with how many candidates have left through a device.
        on_failed: called when a worker did not start MOST_FAILED_STARTS times in a row.
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
        self._fed = [Fed(number, worker, BusyShare(self._clock())) for number, worker in enumerate(workers)]
        self._hang_timeout_s = hang_timeout_s
        self._metrics = metrics
        self._cost = cost
        self._on_drained = on_drained
        self._on_failed = on_failed
        self._tasks: list[asyncio.Task[None]] = []
        self._resting = False  # nothing is taken from the queue
        metrics.watch_workers(batch_tokens=max_batch_tokens, alive=lambda: self.alive, workers=len(self._fed))
        for outcome in LABELS:
            begin(metrics.candidates, outcome)
        for fed in self._fed:
            labels = str(fed.number), fed.worker.device
            metrics.device_busy_ratio.labels(*labels).set_function(partial(self._busy_share, fed))
            for reason in ("hung", "lost"):
                begin(metrics.worker_failures, *labels, reason)

    def start(self) -> None:
        """Feed the workers, which have been started before, from now on. Raises RuntimeError when called again."""
        if self._tasks or self._resting:
            raise RuntimeError("a batcher is started once")
        self._feed_all()

    async def stop(self, patience_s: float = 5.0) -> None:
        """End the workers; a batch on a device has ``patience_s`` seconds to come to its end."""
        await self._leave_all()
        self._resting = False
        for fed in self._fed:
            fed.state = State.FAILED
        await asyncio.gather(*(fed.end(patience_s) for fed in self._fed))

    async def sleep(self, level: SleepLevel) -> SleepLevel:
        """Let go of every device, once what was sent to it has come to its end; what waits goes on waiting.

        Returns "host" if all workers keep their weights. A worker that is being started is ended, and so is one that
        cannot keep them. Calling it again drops what was kept, where ``level`` says so. Not while ``sleep`` or ``wake``
        runs.
        """
        self._resting = True
        while answers := [under_way.answer for fed in self._fed for under_way in fed.under_way]:
            await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.sleep(0)  # whoever feeds the worker settles them
        await self._leave_all()
        await asyncio.gather(*(fed.sleep(level) for fed in self._fed))
        return "host" if all(fed.keeps_weights for fed in self._fed) else "drop"

    async def wake(self) -> None:
        """Take the devices again, and go on with what waits. Not while ``sleep`` or ``wake`` runs.

        Raises StartFailed when a device cannot be taken; then all sleep on, with their weights dropped.
        """
        roused = await asyncio.gather(*(fed.rouse() for fed in self._fed), return_exceptions=True)
        failures = [result for result in roused if result is not None]
        if failures:
            await asyncio.gather(*(fed.sleep("drop") for fed in self._fed))
            raise failures[0]
        self._resting = False
        self._feed_all()

    def _feed_all(self) -> None:
        for fed in self._fed:
            fed.state = State.IDLE
        self._tasks = [asyncio.create_task(self._keep(fed), name=f"jrm-worker-{fed.number}") for fed in self._fed]

    async def _leave_all(self) -> None:
        """From now on nobody feeds or watches the workers. What they have begun is still under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    # --- callers ------------------------------------------------------------------------------------------------------

    def put(self, entry: Entry) -> None:
        """Queue an entry whose candidate is prepared; when its future is done it is let go of, wherever it is."""
        self._queue.put(entry, self._clock())
        entry.future.add_done_callback(lambda _future: self._queue.drop(entry))
        self._wake()

    @property
    def alive(self) -> int:
        """Workers that take work."""
        return sum(fed.state.alive for fed in self._fed)

    @property
    def states(self) -> list[State]:
        """What each worker is doing, in order."""
        return [fed.state for fed in self._fed]

    def check_ready(self) -> None:
        """Raises NotReady while no worker takes work, and none will when it is woken."""
        if not self.alive and not self._resting:
            raise NotReady("no worker is alive", retry_after=1.0)

    def _busy_share(self, fed: Fed) -> float:
        return fed.busy.at(self._clock())

    # --- one worker ---------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        """There may be work: idle workers go first, so that nothing is sent ahead that one of them could begin."""
        idle = [fed for fed in self._fed if fed.state is State.IDLE]
        for fed in idle or self._fed:
            fed.wake.set()

    async def _keep(self, fed: Fed) -> None:
        """Feed a worker for as long as it lives, then start it again."""
        quick_ends = 0  # lives in a row that were short
        while True:
            began = self._clock()
            try:
                reason = await self._feed(fed)
            except Exception:  # a defect of ours, or of the cost function: nobody may wait for what has stopped serving
                logger.exception("worker %d on %s: feeding it failed", fed.number, fed.worker.device)
                reason = "lost"
            await self._give_up(fed, reason)
            quick_ends = 0 if self._clock() - began > STABLE_S else quick_ends + 1
            if not await self._start_again(fed, quick_ends - 1):
                return

    async def _start_again(self, fed: Fed, quick_ends: int) -> bool:
        for pause in restart_pauses(quick_ends):
            await asyncio.sleep(pause)
            try:
                await fed.worker.start()
            except StartFailed as error:
                logger.error("worker %d on %s does not start: %s", fed.number, fed.worker.device, error)
                failure = error
            else:
                fed.state = State.IDLE
                logger.warning("worker %d on %s is back", fed.number, fed.worker.device)
                return True
        fed.state = State.FAILED
        self._on_failed(failure)
        return False

    async def _feed(self, fed: Fed) -> str:
        """Keep a worker's hands full. Returns the reason when it is lost: ``hung`` or ``lost``."""
        lost = fed.worker.lost
        while True:
            fed.wake.clear()
            self._fill(fed)
            woken = asyncio.create_task(fed.wake.wait())
            first = fed.under_way[0] if fed.under_way else None
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
                self._settle(fed, answer)
            elif lost.done():
                return "lost"
            elif not done:
                return "hung"

    def _fill(self, fed: Fed) -> None:
        while len(fed.under_way) < UNDER_WAY and not self._resting:
            if fed.under_way and any(other.state is State.IDLE for other in self._fed if other is not fed):
                break  # they begin it at once, and then wake this one
            batch = self._queue.take(only_full=bool(fed.under_way))
            if not batch:
                break
            candidates = [task.candidate for task in batch]
            sent = asyncio.create_task(fed.worker.score(candidates))
            fed.under_way.append(UnderWay(batch, sent))
            if len(fed.under_way) == 1:
                self._begin(fed)
        was, fed.state = fed.state, State.BUSY if fed.under_way else State.IDLE
        if was is State.IDLE and fed.state is State.BUSY:
            self._wake()

    def _begin(self, fed: Fed) -> None:
        """The oldest batch of a worker is on its device from now on."""
        now = self._clock()
        first = fed.under_way[0]
        first.begun = now
        fed.busy.switch(True, now)
        self._queue.start(first.batch, now)
        self._metrics.observe_batch(
            candidates=len(first.batch),
            tokens=self._cost([task.candidate for task in first.batch]),
            waited=[
                now - entry.put_at for task in first.batch for entry in task.entries[:1] if entry.put_at is not None
            ],
        )

    def _settle(self, fed: Fed, answer: Answer) -> None:
        """The oldest batch of a worker has its answer, and the next is on the device."""
        done, now, device = fed.under_way.popleft(), self._clock(), fed.worker.device
        fed.busy.switch(False, now)
        self._metrics.observe_run(fed.number, device, answer.seconds)
        tokens = sum(task.candidate.tokens for task in done.batch)
        self._metrics.observe_work(fed.number, device, tokens, answer.scored)
        self._metrics.batch_failures.inc(answer.failures)
        self._queue.settle(done.batch, answer.scored, answer.seconds, now)
        self._on_drained(sum(len(task.entries) for task in done.batch))
        if fed.under_way:
            self._begin(fed)

    async def _give_up(self, fed: Fed, reason: str) -> None:
        """A worker takes no more work; what it had begun is tried again, what it had not goes to whoever is free."""
        fed.state = State.STARTING
        now, device = self._clock(), fed.worker.device
        fed.busy.switch(False, now)
        begun = [one.batch for one in fed.under_way if one.begun is not None]
        ahead = [one.batch for one in fed.under_way if one.begun is None]
        logger.error(
            "worker %d on %s: %s with %d candidates on its device",
            fed.number,
            device,
            reason,
            sum(len(batch) for batch in begun),
        )
        self._metrics.worker_failures.labels(str(fed.number), device, reason).inc()
        for batch in ahead:
            self._queue.give_back(batch)
        for batch in begun:
            why = f"the worker on {device} {'hung' if reason == 'hung' else 'died'}"
            self._queue.worker_lost(batch, why, now)
        await fed.end()  # whoever cancels this call has lost nothing: all that was here is back in the queue
        self._wake()


def restart_pauses(quick_ends: int = 0) -> Iterator[float]:
    """Seconds before each attempt to start a worker: none, then 1, 2, 4 and so on; further on after short lives."""
    for attempt in range(quick_ends, quick_ends + MOST_FAILED_STARTS):
        yield 0.0 if attempt <= 0 else min(_LONGEST_PAUSE_S, 2.0 ** (attempt - 1))
