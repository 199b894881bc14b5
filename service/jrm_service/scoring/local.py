"""Scoring in this process: ``score_batch``, which bisects a batch that raises, and a worker that runs in a thread."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import traceback
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Any

from jrm_service.errors import CandidateError, DeviceMemoryTaken, InternalError

from .backend import Backend, BatchResult, OutOfMemory, StartFailed, WorkerLost, WorkerResult
from .types import Candidate, Score

logger = logging.getLogger(__name__)

_IDLE_END_S = 5.0  # for a thread with nothing to do


def score_batch(backend: Backend[Any], candidates: Sequence[Candidate], batch: Any = None) -> WorkerResult:
    """Score candidates so that only those fail that make the backend raise by themselves.

    A batch that raises is scored again in halves, and so on until each culprit is alone; a batch that was too large for
    the memory fits in pieces. ``batch`` is the result of ``backend.collate``, if it was called before. Raises
    WorkerLost.
    """
    started = time.perf_counter()
    failure: str | None = None
    try:
        scored = backend.score(backend.collate(candidates) if batch is None else batch)
    except WorkerLost:
        raise
    except Exception as error:
        # Formatted at once: a log record that holds the exception would keep its frames and their tensors alive.
        logger.error("scoring raised: %s", "".join(traceback.format_exception(error)).rstrip())
        failure, out_of_memory = type(error).__name__, isinstance(error, OutOfMemory)
    if failure is None:
        return WorkerResult(scored, time.perf_counter() - started)
    # Outside of the handler: an exception that is still handled keeps the tensors of its frames.
    batch = None
    if len(candidates) == 1:
        alone = _alone(candidates[0], failure, out_of_memory)
        return WorkerResult(BatchResult([alone], 0), time.perf_counter() - started, 1)
    middle = len(candidates) // 2
    return _joined(1, [score_batch(backend, half) for half in (candidates[:middle], candidates[middle:])])


def _alone(candidate: Candidate, failure: str, out_of_memory: bool) -> CandidateError:
    """The error of a single candidate that made the backend raise. The backend's own message is not passed on."""
    if out_of_memory:
        return DeviceMemoryTaken(
            f"{candidate.tokens} tokens do not fit into the memory of the device, with no other candidate"
        )
    return InternalError(f"the backend raised {failure}")


def _joined(failures: int, answers: Sequence[WorkerResult]) -> WorkerResult:
    outcomes: list[Score | CandidateError] = [outcome for answer in answers for outcome in answer.scored.outcomes]
    return WorkerResult(
        BatchResult(
            outcomes,
            tokens_computed=sum(answer.scored.tokens_computed for answer in answers),
            images_encoded=sum(answer.scored.images_encoded for answer in answers),
            images_reused=sum(answer.scored.images_reused for answer in answers),
            feature_bytes=answers[-1].scored.feature_bytes,
        ),
        seconds=sum(answer.seconds for answer in answers),
        failures=failures + sum(answer.failures for answer in answers),
    )


class LocalWorker:
    """Implements Worker with a backend in this process: one daemon thread, so that a hung call does not block the exit.

    A thread cannot be killed: one that hangs is left behind, and while it hangs, or once the backend has lost its
    device, the worker cannot be restarted.
    """

    def __init__(self, backend: Backend[Any]) -> None:
        self.device = backend.device
        self.backend = backend
        self._thread: threading.Thread | None = None
        self._broken = False
        self._left_behind = False  # the thread was ended during a call
        self._lost: asyncio.Future[None] | None = None
        self._batches: SimpleQueue[tuple[Sequence[Candidate], asyncio.Future[WorkerResult]] | None] = SimpleQueue()
        self._in_flight: set[asyncio.Future[WorkerResult]] = set()

    async def start(self) -> None:
        """Start the thread. Raises StartFailed."""
        if self._broken:
            raise StartFailed("its device is gone")
        if self._thread is not None and self._thread.is_alive():
            raise StartFailed("its last call has not come back")
        loop = asyncio.get_running_loop()
        self._lost = loop.create_future()
        self._left_behind = False
        self._batches = SimpleQueue()
        self._thread = threading.Thread(
            target=self._run, args=(loop, self._batches, self._lost), name=f"jrm-{self.device}", daemon=True
        )
        self._thread.start()

    async def score(self, candidates: Sequence[Candidate]) -> WorkerResult:
        """Score one batch after the earlier ones. Raises WorkerLost when the backend did, or the worker was ended."""
        answer: asyncio.Future[WorkerResult] = asyncio.get_running_loop().create_future()
        self._in_flight.add(answer)
        answer.add_done_callback(self._in_flight.discard)
        self._batches.put((candidates, answer))
        return await answer

    @property
    def lost(self) -> asyncio.Future[None]:
        """Done once the backend has raised WorkerLost."""
        assert self._lost is not None
        return self._lost

    async def sleep(self) -> None:
        """Do nothing: a backend in the server's own process, such as a fake, holds no device."""

    async def wake(self) -> None:
        """Do nothing, like ``sleep``."""

    async def end(self, *, patience_s: float = 0.0) -> None:
        """End the thread after its current call."""
        if self._in_flight and patience_s:
            await asyncio.wait(self._in_flight, timeout=patience_s)
        self._batches.put(None)
        self._left_behind |= bool(self._in_flight)
        if not self._left_behind and self._thread is not None:
            await asyncio.to_thread(self._thread.join, _IDLE_END_S)  # so that the worker can be restarted at once
        for answer in list(self._in_flight):
            if not answer.done():
                answer.set_exception(WorkerLost("the worker was ended"))
                answer.exception()  # marks it as retrieved: asyncio must not warn if nobody waits

    def _run(
        self,
        loop: asyncio.AbstractEventLoop,
        batches: SimpleQueue[tuple[Sequence[Candidate], asyncio.Future[WorkerResult]] | None],
        lost: asyncio.Future[None],
    ) -> None:
        while (submitted := batches.get()) is not None:
            candidates, answer = submitted
            try:
                result: WorkerResult | WorkerLost = score_batch(self.backend, candidates)
            except BaseException as error:  # a SystemExit from a library must not end the thread unnoticed
                logger.error("%s is lost: %s", self.device, "".join(traceback.format_exception(error)).rstrip())
                result = error if isinstance(error, WorkerLost) else WorkerLost(type(error).__name__)
                self._broken = True
            del submitted, candidates  # an idle thread must not keep the last batch alive
            try:
                loop.call_soon_threadsafe(_settle, answer, result, lost)
            except RuntimeError:
                return  # the event loop is closed: nobody is waiting
            if isinstance(result, WorkerLost):
                return


def _settle(
    answer: asyncio.Future[WorkerResult], result: WorkerResult | WorkerLost, lost: asyncio.Future[None]
) -> None:
    if isinstance(result, WorkerLost):
        if not lost.done():
            lost.set_result(None)
        if not answer.done():
            answer.set_exception(result)
    elif not answer.done():
        answer.set_result(result)
