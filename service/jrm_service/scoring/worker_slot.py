"""The batcher's record of one worker: its state and its batches in progress, and how it ends, sleeps and wakes."""

from __future__ import annotations

import asyncio
import enum
import logging
from collections import deque
from dataclasses import dataclass, field

from .backend import SleepLevel, Worker, WorkerLost, WorkerResult
from .queue import Task
from .rates import BusyShare

logger = logging.getLogger(__name__)


class State(enum.Enum):
    """The state of a worker. ``FAILED`` is permanent."""

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    ASLEEP = "asleep"
    FAILED = "failed"

    @property
    def alive(self) -> bool:
        """Whether the worker accepts work."""
        return self in (State.IDLE, State.BUSY)


@dataclass(slots=True)
class InFlightBatch:
    """A batch at a worker, with its future answer and when it began: None while another is on the device."""

    batch: list[Task]
    answer: asyncio.Task[WorkerResult]
    begun: float | None = None


@dataclass(eq=False, slots=True)
class WorkerSlot:
    """One worker with its batches in progress, oldest first."""

    number: int
    worker: Worker
    busy: BusyShare
    state: State = State.STARTING
    keeps_weights: bool = False  # it is asleep, and its process still has the weights
    in_flight: deque[InFlightBatch] = field(default_factory=deque)
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    async def end(self, patience_s: float = 0.0) -> None:
        """End the worker and the tasks that wait for its answers; a batch on its device gets ``patience_s`` seconds."""
        answers = [sent.answer for sent in self.in_flight]
        self.in_flight.clear()
        await self.worker.end(patience_s=patience_s)
        for answer in answers:
            answer.cancel()
        await asyncio.gather(*answers, return_exceptions=True)

    async def sleep(self, level: SleepLevel) -> None:
        """Release the device; no batch may be in progress. Called again with "drop", it drops the kept weights."""
        was, self.state = self.state, State.ASLEEP
        if was is State.IDLE and level == "host":
            try:
                await self.worker.sleep()
            except WorkerLost as error:
                logger.error("worker %d on %s did not keep its weights: %s", self.number, self.worker.device, error)
                await self.worker.end()
            else:
                self.keeps_weights = True
        elif was is not State.ASLEEP or (level == "drop" and self.keeps_weights):
            self.keeps_weights = False
            await self.worker.end()

    async def rouse(self) -> None:
        """After ``sleep``: take the device again, with the kept weights or by loading them. Raises StartFailed."""
        self.state = State.STARTING
        if self.keeps_weights:
            self.keeps_weights = False
            try:
                await self.worker.wake()
            except WorkerLost as error:  # it has ended, or its device is full: a start finds out which
                logger.warning("worker %d on %s is restarted: %s", self.number, self.worker.device, error)
                await self.worker.end()
                await self.worker.start()
        else:
            await self.worker.start()
        self.state = State.IDLE
