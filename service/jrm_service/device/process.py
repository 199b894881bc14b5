"""A scoring worker in a process of its own, with the interface that the batcher uses."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jrm_service.errors import CheckpointError
from jrm_service.scoring.backend import StartFailed, WorkerLost, WorkerResult
from jrm_service.scoring.types import Candidate, ServedModel

from .channel import Batch, Done, Load, Loaded, Scores, Sleep, Wake
from .child import Child, start_with_retries

logger = logging.getLogger(__name__)


class ProcessWorker:
    """Implements Worker with one process per device. Use from one event loop, which runs in the main thread.

    Args:
        load: what the process loads.
        start_timeout_s: seconds that it may take to be ready.
        module: the Python module that the process runs.
    """

    def __init__(self, load: Load, *, start_timeout_s: float, module: str = "jrm_service.model.main") -> None:
        self.device = load.devices[load.number]
        self._load = load
        self._start_timeout_s = start_timeout_s
        self._module = module
        self._precision: str | None = None
        self._child: Child | None = None
        self._answers: deque[asyncio.Future[Any]] = deque()

    async def start(self) -> None:
        """Start the process. Raises StartFailed, with ``problems`` if the worker says why it cannot load."""
        await self.load()

    async def load(self) -> Loaded:
        """Start the process, and return its description of what it loaded. Raises StartFailed."""
        self._child = Child(self._module, self._received, self._ended)
        loaded: Loaded = await self._child.ask(self._load, timeout_s=self._start_timeout_s)
        if self._precision not in (None, loaded.model.precision):
            await self.end()
            raise StartFailed(f"it scores in {loaded.model.precision} now, not in {self._precision}")
        self.device = loaded.model.description["device"]
        return loaded

    def expect(self, model: ServedModel) -> None:
        """Require that restarted processes serve this model, even if the checkpoint's folder has changed."""
        self._load = replace(self._load, hashed=True, measured=False, fingerprint=model.fingerprint)
        self._precision = model.precision

    @property
    def pid(self) -> int | None:
        """The id of the process that was started last."""
        return None if self._child is None else self._child.pid

    async def score(self, candidates: Sequence[Candidate]) -> WorkerResult:
        """Score one batch after the earlier ones. Raises WorkerLost when the process ends first."""
        answer: WorkerResult = await self._ask(Batch(_each_image_once(candidates)))
        return answer

    async def sleep(self) -> None:
        """Release the device and keep the weights. Raises WorkerLost when the process ends or takes too long."""
        done: Done = await self._ask_in_time(Sleep())
        logger.info("worker on %s sleeps and holds %s bytes there", self.device, f"{done.device_bytes:,}")

    async def wake(self) -> None:
        """Take the device again. Raises WorkerLost when the process ends first, or takes too long."""
        await self._ask_in_time(Wake())

    async def _ask_in_time(self, message: object) -> Any:
        """Like ``_ask``, for at most as long as a start may take: a process that was stopped never answers."""
        try:
            async with asyncio.timeout(self._start_timeout_s):
                return await self._ask(message)
        except TimeoutError:
            raise WorkerLost(f"no answer within {self._start_timeout_s:g} s") from None

    async def _ask(self, message: object) -> Any:
        """Send a message and return its answer. Answers come in the order of the messages."""
        assert self._child is not None
        if self._child.lost.done():
            raise WorkerLost("the worker has ended")
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._answers.append(answer)
        self._child.send(message)
        return await answer

    @property
    def lost(self) -> asyncio.Future[None]:
        """Done once the process has ended."""
        assert self._child is not None
        return self._child.lost

    async def end(self, *, patience_s: float = 0.0) -> None:
        """Kill the process, after giving running batches ``patience_s`` seconds."""
        waiting = [answer for answer in self._answers if not answer.done()]
        if waiting and patience_s:
            await asyncio.wait(waiting, timeout=patience_s)
        if self._child is not None:
            await self._child.end()

    def _received(self, message: Any) -> None:
        answer = self._answers.popleft()
        if not answer.done():
            answer.set_result(message.answer if isinstance(message, Scores) else message)

    def _ended(self, how: str) -> None:
        for answer in self._answers:
            if not answer.done():
                answer.set_exception(WorkerLost(f"the worker {how}"))
        self._answers.clear()


async def load_all(workers: Sequence[ProcessWorker]) -> list[Loaded]:
    """Start all workers at the same time, and return what each has loaded.

    Raises CheckpointError with the reasons why the checkpoint cannot be served, or when two workers would score in
    different precision, and StartFailed when one fails MOST_FAILED_STARTS times in a row for another reason. All have
    ended then.
    """
    try:
        async with asyncio.TaskGroup() as tasks:
            loading = [
                tasks.create_task(start_with_retries(worker.load, f"the worker on {worker.device}"))
                for worker in workers
            ]
        loaded = [task.result() for task in loading]
        _require_one_precision(loaded)
    except BaseException as error:
        await asyncio.gather(*(worker.end() for worker in workers))
        if isinstance(error, BaseExceptionGroup):
            failure = error.exceptions[0]
            if isinstance(failure, StartFailed) and failure.problems:
                raise CheckpointError(failure.problems) from None
            raise failure from None
        raise
    for worker in workers:
        worker.expect(loaded[0].model)
    return loaded


def _require_one_precision(loaded: Sequence[Loaded]) -> None:
    """Raise CheckpointError if precisions differ: a reward must not depend on which device was free."""
    precisions = [(worker.model.description["device"], worker.model.precision) for worker in loaded]
    if len({precision for _, precision in precisions}) > 1:
        listed = ", ".join(f"{device} in {precision}" for device, precision in precisions)
        raise CheckpointError([f"the workers would score in different precision: {listed}; set --dtype and --quantize"])


def _each_image_once(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The same candidates, with one object for equal images, since a message sends each object once."""
    images = {image.key: image for candidate in candidates for image in candidate.images}

    def shared(candidate: Candidate) -> Candidate:
        if all(images[image.key] is image for image in candidate.images):
            return candidate
        sequences = tuple(
            replace(
                sequence,
                segments=tuple(
                    segment if (key := getattr(segment, "key", None)) is None else images[key]
                    for segment in sequence.segments
                ),
            )
            for sequence in candidate.sequences
        )
        sources = tuple(images[source.key] for source in candidate.sources)
        return replace(candidate, sources=sources, edited=images[candidate.edited.key], sequences=sequences)

    return [shared(candidate) for candidate in candidates]
