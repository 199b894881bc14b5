"""Threads of our own for the device: one scores, one collates ahead. The event loop decides, the threads execute."""

from __future__ import annotations

import asyncio
import enum
import logging
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from .backend import Backend, OutOfMemory, Scored, WorkerLost
from .queue import Entry
from .rates import BusyShare

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Failure:
    """That a call raised, without the exception: its traceback would keep the tensors of an out-of-memory alive."""

    name: str
    lost: bool
    out_of_memory: bool = False


@dataclass(frozen=True, slots=True)
class Finished(Generic[T]):
    """What a call in a thread came to: ``value``, or the ``failure`` that took its place; and its ``seconds``."""

    value: T | None
    failure: Failure | None
    seconds: float


class OwnThread:
    """One daemon thread that runs calls in order. A call that never returns can never block the process's exit.

    ``submit`` and ``close`` are for the event loop that started it.
    """

    def __init__(self, name: str, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._calls: SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Finished[Any]]] | None] = SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.left: asyncio.Future[None] = self._loop.create_future()
        self._thread.start()

    def submit(self, call: Callable[[], T]) -> asyncio.Future[Finished[T]]:
        """Run ``call`` after what was submitted before. The future gets a Finished and never an exception."""
        future: asyncio.Future[Finished[T]] = self._loop.create_future()
        self._calls.put((call, future))
        return future

    def close(self) -> None:
        """Let the thread end after its present call. ``left`` is done when it has run its last one."""
        self._calls.put(None)

    def join(self) -> None:
        """Wait for the end of a thread that has ``left``: a moment."""
        self._thread.join()

    def _run(self) -> None:
        while (submitted := self._calls.get()) is not None:
            call, future = submitted
            self._deliver(future, self._finish(call))
            del submitted, call, future  # an idle thread must not keep the last batch alive
        self._deliver(self.left, None)

    def _finish(self, call: Callable[[], T]) -> Finished[T]:
        started = self._clock()
        try:
            value = call()
        except BaseException as error:  # a SystemExit from a library must not end the thread unnoticed
            # Formatted here and now: a log record that holds the exception would hold its frames and their tensors.
            log.error("%s: %s", self._thread.name, "".join(traceback.format_exception(error)).rstrip())
            lost = isinstance(error, WorkerLost) or not isinstance(error, Exception)
            failure = Failure(type(error).__name__, lost, isinstance(error, OutOfMemory))
            return Finished(None, failure, self._clock() - started)
        return Finished(value, None, self._clock() - started)

    def _deliver(self, future: asyncio.Future[T], value: T) -> None:
        def deliver() -> None:
            if not future.done():
                future.set_result(value)

        try:
            self._loop.call_soon_threadsafe(deliver)
        except RuntimeError:
            log.debug("%s: the event loop is closed, a result is dropped", self._thread.name)


class State(enum.Enum):
    """What a worker is doing. ``HUNG`` may become ``IDLE`` again, ``LOST`` is for good."""

    IDLE = "idle"
    BUSY = "busy"
    HUNG = "hung"
    LOST = "lost"

    @property
    def alive(self) -> bool:
        """Whether the worker takes work."""
        return self in (State.IDLE, State.BUSY)


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker, as readiness sees it."""

    worker: int
    device: str
    state: State


@dataclass(slots=True)
class Job:
    """Entries for one run, and their batch being collated."""

    entries: list[Entry]
    collating: asyncio.Future[Finished[Any]]


@dataclass(eq=False)
class Worker:
    """One backend, its two threads, and what it has in its hands. Create it on the running event loop.

    ``held`` are entries that it has taken to score; ``ahead`` is the batch collated for afterwards.
    """

    number: int
    backend: Backend[Any]
    clock: Callable[[], float]
    state: State = State.IDLE
    held: Sequence[Entry] = ()
    ahead: Job | None = None
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.busy = BusyShare(self.clock())
        self._device = OwnThread(f"jrm-device-{self.number}", self.clock)
        try:
            self._host = OwnThread(f"jrm-collate-{self.number}", self.clock)
        except RuntimeError:  # the process may start no more threads
            self._device.close()
            raise

    @property
    def status(self) -> WorkerStatus:
        """What the outside may know."""
        return WorkerStatus(self.number, self.backend.device, self.state)

    def collate(self, entries: list[Entry]) -> Job:
        """Begin to build a batch, beside whatever the device does."""
        candidates = [entry.candidate for entry in entries]
        return Job(entries, self._host.submit(lambda: self.backend.collate(candidates)))

    def score(self, batch: Any) -> asyncio.Future[Finished[Scored]]:
        """Run a collated batch on the device's thread."""
        return self._device.submit(lambda: self.backend.score(batch))

    def close(self) -> tuple[OwnThread, OwnThread]:
        """Let both threads end after their present calls, and return them."""
        self._device.close()
        self._host.close()
        return self._device, self._host
