"""The one queue of all callers, in asyncio: admits requests, feeds the workers, keeps failures small.

The rules live in ``queue`` and ``planner``, which are pure; the device lives in the threads of ``worker``; here the two
meet. There is no fixed wait: a batch is planned the moment a device is free, from whatever has gathered by then. While
a device works, its next batch is fixed and collated ahead only if the waiting candidates already fill it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from jrm_service.metrics import Metrics, begin

from .backend import Backend
from .outcomes import LABELS
from .planner import BatchCost, unshared_tokens
from .queue import OnScore, ScoreQueue
from .runner import Died, Hung, Runner
from .ticket import Ticket
from .worker import Job, OwnThread, State, Worker, WorkerStatus

log = logging.getLogger(__name__)


class Batcher:
    """Scores the candidates of all requests in shared batches. Use it from one event loop only.

    A batch in which the backend raises is run again in halves, so that only the candidates that make it raise by
    themselves fail. A worker that hangs or raises WorkerLost takes no more work, and what it had in its hands is
    retried once on another; a hung one whose call comes back after all rejoins, and that late result is dropped.

    Args:
        backends: one worker each, with two threads of its own.
        max_batch_tokens: the budget of a batch, as ``cost`` counts.
        max_queue: candidates that may be admitted and unfinished at once.
        hang_timeout_s: seconds after which one call of a backend counts as hung; above the longest honest batch.
        metrics: where everything is counted.
        clock: monotonic seconds.
        cost: tokens that a batch costs.
        on_score: called in the event loop with every candidate that a backend scored, also when its caller has left.
        on_all_lost: called once when nothing will be scored any more: every worker is lost for good, or none has taken
            work for twice ``hang_timeout_s``, because those that are not lost hang.
    """

    def __init__(
        self,
        backends: Sequence[Backend[Any]],
        *,
        max_batch_tokens: int,
        max_queue: int,
        hang_timeout_s: float,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        cost: BatchCost = unshared_tokens,
        on_score: OnScore = lambda _candidate, _score: None,
        on_all_lost: Callable[[], None] = lambda: None,
    ) -> None:
        if not backends:
            raise ValueError("a batcher needs at least one backend")
        self._backends = list(backends)
        self._queue = ScoreQueue(max_batch_tokens=max_batch_tokens, max_queue=max_queue, cost=cost, on_score=on_score)
        self._runner = Runner(self._queue, metrics, clock, cost, hang_timeout_s, max_batch_tokens)
        self._metrics = metrics
        self._clock = clock
        self._hang_timeout_s = hang_timeout_s
        self._on_all_lost = on_all_lost
        self._nobody: asyncio.TimerHandle | None = None  # runs while no worker is alive
        self._workers: list[Worker] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._empty = asyncio.Event()
        self._empty.set()
        metrics.watch_queue(
            depth=lambda: self.depth,
            limit=max_queue,
            batch_tokens=max_batch_tokens,
            alive=lambda: self.alive,
            workers=len(self._backends),
        )
        for outcome in LABELS:
            begin(metrics.candidates, outcome)

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the workers; from then on requests are admitted. Raises RuntimeError when called again."""
        if self._workers or self._queue.draining:
            raise RuntimeError("a batcher is started once")
        try:
            for number, backend in enumerate(self._backends):
                self._workers.append(Worker(number, backend, self._clock))
        except BaseException:
            for worker in self._workers:
                worker.close()
            self._workers.clear()
            raise
        for worker in self._workers:
            share = self._metrics.device_busy_ratio.labels(str(worker.number), worker.backend.device)
            share.set_function(partial(_busy_share, worker, self._clock))
            for state in (State.HUNG, State.LOST):
                begin(self._metrics.worker_failures, str(worker.number), worker.backend.device, state.value)
            self._queue.worker_up(worker.number)
            self._tasks.append(asyncio.create_task(self._serve(worker), name=f"jrm-worker-{worker.number}"))

    async def drain(self) -> None:
        """Refuse new requests with Draining, and wait until everything admitted has its outcome."""
        self._queue.close()
        await self._empty.wait()

    async def stop(self, grace_s: float = 5.0) -> None:
        """End the workers. Whatever is unfinished fails with an InternalError; call ``drain`` first to avoid that.

        Waits at most ``grace_s`` seconds for calls that are running. A thread that is hung beyond that is left behind;
        it cannot keep the process from ending.
        """
        self._queue.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._queue.abandon("the server stopped", self._clock())
        for timer in (self._timer, self._nobody):
            if timer is not None:
                timer.cancel()
        threads: list[OwnThread] = []
        for worker in self._workers:
            worker.state = State.LOST
            threads += worker.close()
        if threads:
            await asyncio.wait({thread.left for thread in threads}, timeout=grace_s)
        for thread in threads:
            if thread.left.done():
                thread.join()

    # --- callers ------------------------------------------------------------------------------------------------------

    def admit(
        self, candidates: int, timeout_s: float, groups: Sequence[int] = (), tenant: str = "", request_id: str = ""
    ) -> Ticket:
        """Reserve places for ``candidates``, all or none. Use the ticket as a context manager.

        Args:
            candidates: how many outcomes there will be.
            timeout_s: seconds until whatever is unfinished fails with DeadlineExceeded.
            groups: sizes of the groups, which lie one after the other in the indices and add up to ``candidates``; with
                them, each group's completion time is observed.
            tenant: whose request it is; tenants share the devices equally, and in each other's absence fully.
            request_id: the caller's own name for the request, if any; with it, a refused request that comes back when
                it was told to is let in before newcomers.

        Raises:
            PayloadTooLarge: more than the queue ever holds.
            Overloaded: more than it has room for; ``retry_after`` follows the measured drain rate.
            NotReady: not started, or no worker is alive.
            Draining: ``drain`` or ``stop`` was called.
        """
        if groups and sum(groups) != candidates:
            raise ValueError(f"groups of {sum(groups)} candidates in all, {candidates} were asked for")
        ticket = Ticket(
            self._queue,
            self._metrics,
            self._clock,
            candidates=candidates,
            timeout_s=timeout_s,
            groups=groups,
            tenant=tenant,
            request_id=request_id,
            on_put=self._kick,
            on_done=self._on_done,
        )
        self._empty.clear()
        self._arm_timer()
        return ticket

    @property
    def depth(self) -> int:
        """Candidates admitted and unfinished."""
        return self._queue.unfinished

    @property
    def alive(self) -> int:
        """Workers that take work."""
        return sum(worker.state.alive for worker in self._workers)

    @property
    def workers(self) -> list[WorkerStatus]:
        """Every worker with its device and state; empty before ``start``."""
        return [worker.status for worker in self._workers]

    def check_room(self, candidates: int, tenant: str = "", request_id: str = "") -> None:
        """Raise what ``admit`` would raise for so many candidates now; take nothing otherwise."""
        self._queue.check_room(candidates, self._clock(), tenant, request_id)

    def check_ready(self) -> None:
        """Raise the NotReady or Draining with which ``admit`` would refuse a request now; do nothing otherwise."""
        self._queue.check_open()

    # --- the queue's events -------------------------------------------------------------------------------------------

    def _on_done(self) -> None:
        """A ticket is complete. Called from inside the queue, so it must not call the queue's methods."""
        if self._queue.unfinished == 0:
            self._empty.set()

    def _arm_timer(self) -> None:
        """Deadlines fire by the clock, whatever the devices do."""
        deadline = self._queue.next_deadline
        if deadline is None or (self._timer is not None and self._timer_at <= deadline):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = deadline
        # The loop may wake up a little before the clock gets there; then this comes round again, but never spins.
        delay = max(0.001, deadline - self._clock())
        self._timer = asyncio.get_running_loop().call_later(delay, self._on_deadline)

    def _on_deadline(self) -> None:
        self._timer = None
        self._queue.expire(self._clock())
        self._arm_timer()

    def _kick(self) -> None:
        """There may be work: wake the idle workers; if all are busy, fix and collate full batches ahead."""
        idle = [worker for worker in self._workers if worker.state is State.IDLE]
        for worker in idle:
            worker.wake.set()
        if idle:
            return
        for worker in self._workers:
            if worker.state is State.BUSY and worker.ahead is None:
                entries = self._queue.take(worker.number, self._clock(), only_full=True)
                if entries:
                    worker.ahead = worker.collate(entries)

    # --- one worker ---------------------------------------------------------------------------------------------------

    async def _serve(self, worker: Worker) -> None:
        while True:
            try:
                # No name for the job: it would keep the last batch's tensors alive while the worker waits.
                await self._runner.run(worker, await self._next(worker))
                worker.held = ()
            except Hung as hung:
                self._give_up(worker, State.HUNG)
                await asyncio.wait({hung.call})
                failure = hung.call.result().failure
                if failure is not None and failure.lost:
                    worker.state = State.LOST
                    break
                log.warning(
                    "worker %d on %s came back; its late result is dropped", worker.number, worker.backend.device
                )
                worker.state = State.IDLE
                self._queue.worker_up(worker.number)
                self._watch_for_life()
            except Died:
                self._give_up(worker, State.LOST)
                break
            except Exception:
                # A defect of ours or of the cost function: nobody may wait for a worker that has stopped serving.
                log.exception("worker %d on %s broke", worker.number, worker.backend.device)
                self._give_up(worker, State.LOST)
                break
        worker.close()
        self._watch_for_life()

    async def _next(self, worker: Worker) -> Job:
        """The next batch for a free worker, as soon as there is one."""
        while True:
            worker.wake.clear()
            job = self._claim(worker)
            if job is not None:
                worker.state = State.BUSY
                worker.held = job.entries
                self._kick()
                return job
            worker.state = State.IDLE
            await worker.wake.wait()

    def _claim(self, worker: Worker) -> Job | None:
        """What was collated ahead, else what waits, else what was fixed for a worker that is still busy."""
        if worker.ahead is not None:
            job, worker.ahead = worker.ahead, None
            return job
        entries = self._queue.take(worker.number, self._clock())
        if entries:
            return worker.collate(entries)
        for other in self._workers:
            if other.ahead is None or any(entry.tried_on == worker.number for entry in other.ahead.entries):
                continue
            entries, other.ahead = other.ahead.entries, None
            return worker.collate(entries)
        return None

    def _give_up(self, worker: Worker, state: State) -> None:
        """A worker takes no more work; what it has in its hands goes elsewhere or fails."""
        device = worker.backend.device
        held, worker.held = worker.held, ()
        ahead, worker.ahead = worker.ahead, None
        worker.state = state
        self._metrics.worker_failures.labels(str(worker.number), device, state.value).inc()
        why = f"the worker on {device} {'hung' if state is State.HUNG else 'died'}"
        log.error("worker %d: %s with %d candidates in its hands", worker.number, why, len(held))
        self._queue.worker_lost(worker.number, held, ahead.entries if ahead else [], why, self._clock())
        self._watch_for_life()
        self._kick()

    def _watch_for_life(self) -> None:
        """A worker went or came back: without any, give those that hang a while, and then up.

        A GPU mostly dies by hanging. One that does so for ever looks no different from one that takes long.
        """
        if self.alive:
            if self._nobody is not None:
                self._nobody.cancel()
                self._nobody = None
        elif all(worker.state is State.LOST for worker in self._workers):
            self._give_up_all()
        elif self._nobody is None:
            self._nobody = asyncio.get_running_loop().call_later(2 * self._hang_timeout_s, self._give_up_all)

    def _give_up_all(self) -> None:
        if self._nobody is not None:
            self._nobody.cancel()
        on_all_lost, self._on_all_lost = self._on_all_lost, lambda: None
        on_all_lost()


def _busy_share(worker: Worker, clock: Callable[[], float]) -> float:
    return worker.busy.at(clock())
