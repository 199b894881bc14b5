"""A worker process as the queue sees it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

from jrm_service.errors import CheckpointError
from jrm_service.scoring.backend import Answer, StartFailed, WorkerLost
from jrm_service.scoring.batcher import restart_pauses
from jrm_service.scoring.types import Candidate

from .channel import Batch, Channel, Load, Loaded, LogLine, NotLoaded, Scores

logger = logging.getLogger(__name__)

_REAP_S = 10.0
_PYTHON = (sys.executable, "-P")  # -P: nothing is imported from wherever the server was started


class ProcessWorker:
    """Implements Worker for a device in a process of its own. Use from one event loop, which runs in the main thread.

    The main thread, because a worker asks the kernel to be killed when the thread that started it ends: so not even a
    stopped worker outlives a server that was killed.

    Args:
        load: what the process is to load.
        start_timeout_s: seconds that it may take to be ready.
        module: what is run as the process; it is told its end of the channel and the id of this process.
    """

    def __init__(self, load: Load, *, start_timeout_s: float, module: str = "jrm_service.model.main") -> None:
        self.device = load.devices[load.number]
        self._load = load
        self._start_timeout_s = start_timeout_s
        self._module = module
        self._running: _Running | None = None

    async def start(self) -> None:
        """Start the process. Raises StartFailed, with ``problems`` where the worker said what keeps it from loading."""
        await self.load()

    async def load(self) -> Loaded:
        """Start the process, and return what it tells of what it has loaded. Raises StartFailed."""
        running = self._running = _Running(self._load, self._module)
        try:
            async with asyncio.timeout(self._start_timeout_s):
                loaded = await running.loaded
        except TimeoutError:
            await self.end()
            raise StartFailed(f"not ready after {self._start_timeout_s:g} s") from None
        except StartFailed:
            await self.end()
            raise
        self.device = loaded.model.description["device"]
        return loaded

    def expect(self, fingerprint: str) -> None:
        """From now on, a worker that is started again must serve the same, whatever has become of the folder."""
        self._load = replace(self._load, hashed=True, measured=False, fingerprint=fingerprint)

    @property
    def pid(self) -> int | None:
        """The process that was started last."""
        return None if self._running is None else self._running.process.pid

    async def score(self, candidates: Sequence[Candidate]) -> Answer:
        """Score one batch after those before it. Raises WorkerLost when the process ends first."""
        assert self._running is not None
        return await self._running.score(candidates)

    @property
    def lost(self) -> asyncio.Future[None]:
        """Done once the process has ended."""
        assert self._running is not None
        return self._running.lost

    async def end(self, *, patience_s: float = 0.0) -> None:
        """Kill the process, after a batch under way has had ``patience_s``. It holds nothing worth a goodbye."""
        if self._running is not None:
            await self._running.end(patience_s)


async def load_all(workers: Sequence[ProcessWorker]) -> list[Loaded]:
    """Start every worker, at the same time, and return what each tells of what it has loaded.

    Raises CheckpointError with what keeps the checkpoint from being served, and StartFailed when one does not start
    MOST_FAILED_STARTS times in a row for another reason. Then all have ended.
    """
    try:
        async with asyncio.TaskGroup() as tasks:
            loading = [tasks.create_task(_load_patiently(worker)) for worker in workers]
    except BaseException as error:
        await asyncio.gather(*(worker.end() for worker in workers))
        if isinstance(error, BaseExceptionGroup):
            failure = error.exceptions[0]
            if isinstance(failure, StartFailed) and failure.problems:
                raise CheckpointError(failure.problems) from None
            raise failure from None
        raise
    loaded = [task.result() for task in loading]
    for worker in workers:
        worker.expect(loaded[0].model.fingerprint)
    return loaded


async def _load_patiently(worker: ProcessWorker) -> Loaded:
    for pause in restart_pauses():
        await asyncio.sleep(pause)
        try:
            return await worker.load()
        except StartFailed as error:
            if error.problems:
                raise
            logger.error("the worker on %s does not start: %s", worker.device, error)
            failure = error
    raise failure


class _Running:
    """One life of a worker: the process, a thread that sends to it and one that receives from it."""

    def __init__(self, load: Load, module: str) -> None:
        self._loop = asyncio.get_running_loop()
        self.loaded: asyncio.Future[Loaded] = self._loop.create_future()
        self.lost: asyncio.Future[None] = self._loop.create_future()
        self._answers: deque[asyncio.Future[Answer]] = deque()
        ours, theirs = socket.socketpair()
        try:
            self.process = subprocess.Popen(  # noqa: S603 - a fixed command
                [*_PYTHON, "-m", module, str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        finally:
            theirs.close()
        self._channel = Channel(ours)
        self._outbox: SimpleQueue[object] = SimpleQueue()
        self._outbox.put(load)
        for target in (self._send, self._receive):
            threading.Thread(target=target, name=f"jrm-worker-{self.process.pid}", daemon=True).start()

    async def score(self, candidates: Sequence[Candidate]) -> Answer:
        if self.lost.done():
            raise WorkerLost("the worker has ended")
        answer: asyncio.Future[Answer] = self._loop.create_future()
        self._answers.append(answer)
        self._outbox.put(Batch(_each_image_once(candidates)))
        return await answer

    async def end(self, patience_s: float) -> None:
        waiting = [answer for answer in self._answers if not answer.done()]
        if waiting and patience_s:
            await asyncio.wait(waiting, timeout=patience_s)
        self.process.kill()
        self._outbox.put(None)
        self._channel.close()
        try:
            await asyncio.to_thread(self.process.wait, _REAP_S)
        except subprocess.TimeoutExpired:  # in the kernel, where a signal does not reach it: a driver that hangs
            logger.error("worker process %d does not end", self.process.pid)
        self._ended()

    def _send(self) -> None:
        while (message := self._outbox.get()) is not None:
            try:
                self._channel.send(message)
            except OSError:
                return  # it is gone, as the receiving thread learns too
            del message  # an idle thread must not keep the last batch alive

    def _receive(self) -> None:
        with suppress(RuntimeError):  # the event loop is closed: nobody waits
            try:
                while True:
                    self._loop.call_soon_threadsafe(self._received, self._channel.receive())
            except EOFError:
                self._loop.call_soon_threadsafe(self._ended)

    def _received(self, message: Any) -> None:
        match message:
            case Scores(answer):
                waiting = self._answers.popleft()
                if not waiting.done():
                    waiting.set_result(answer)
            case LogLine(name, level, text):
                logging.getLogger(name).log(level, "%s", text)
            case Loaded() if not self.loaded.done():
                self.loaded.set_result(message)
            case NotLoaded(problems) if not self.loaded.done():
                self.loaded.set_exception(StartFailed("; ".join(problems), problems))

    def _ended(self) -> None:
        if self.lost.done():
            return
        self.lost.set_result(None)
        if not self.loaded.done():
            self.loaded.set_exception(StartFailed(f"it {self._how_it_ended()} before it was ready"))
            self.loaded.exception()  # read: whoever started it may have gone
        for answer in self._answers:
            if not answer.done():
                answer.set_exception(WorkerLost(f"the worker {self._how_it_ended()}"))
        self._answers.clear()

    def _how_it_ended(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            code = self.process.wait(1.0)
            if code >= 0:
                return f"ended with status {code}"
            return f"was ended by {signal.Signals(-code).name}"
        return "closed its connection"


def _each_image_once(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The same candidates, with one object for equal images: what a message names twice travels once."""
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
