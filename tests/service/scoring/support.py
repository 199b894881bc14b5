"""What the tests of the queue share: candidates of an exact length, a worker in the event loop, a running batcher."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import numpy as np
from prometheus_client import CollectorRegistry

from benchmarks import virtual_time
from jrm_service.metrics import Metrics
from jrm_service.scoring.backend import Backend, StartFailed, Worker, WorkerLost, WorkerResult
from jrm_service.scoring.batcher import Batcher
from jrm_service.scoring.fakes import FakeBackend
from jrm_service.scoring.local import score_batch
from jrm_service.scoring.request import Request
from jrm_service.scoring.types import Candidate, Image, Text, TokenSequence

T = TypeVar("T")

_numbers = itertools.count()
_PIXELS = np.zeros((1, 1, 3), dtype=np.uint8)


def candidate(tokens: int = 1, source: str | None = None, instruction: str = "edit") -> Candidate:
    """A candidate of exactly ``tokens`` tokens, with a source of its own unless one is named."""
    number = next(_numbers)
    return Candidate(
        sources=(Image((source or f"source {number}").encode(), _PIXELS, 1),),
        edited=Image(f"edited {number}".encode(), _PIXELS, 1),
        instruction=instruction,
        sequences=(TokenSequence((Text((0,) * tokens),), tail=()),),
    )


class Clock:
    """Seconds that pass only by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class LoopWorker:
    """Implements Worker in the event loop itself: every batch takes ``seconds`` of the loop's clock, real or virtual.

    A candidate chosen by ``kills`` takes the worker with it, one chosen by ``hangs`` never has an answer. The first
    starts after the first fail, as many as ``failing_starts``.
    """

    def __init__(
        self,
        backend: Backend[Any] | None = None,
        *,
        seconds: float = 1.0,
        kills: Callable[[Candidate], bool] = lambda candidate: False,
        hangs: Callable[[Candidate], bool] = lambda candidate: False,
        failing_starts: int = 0,
    ) -> None:
        self.backend = backend or FakeBackend()
        self.device = self.backend.device
        self.batches: list[tuple[Candidate, ...]] = []
        """What was on the device, in order."""
        self.sent: list[tuple[Candidate, ...]] = []
        """What was handed over, in order."""
        self.started: list[float] = []
        """When it was told to start."""
        self.ends = 0
        self._seconds = seconds
        self._kills = kills
        self._hangs = hangs
        self._failing_starts = failing_starts
        self.naps: list[str] = []
        """Each ``sleep`` and ``wake``."""
        self._turn = asyncio.Lock()
        self._lost: asyncio.Future[None] | None = None

    async def start(self) -> None:
        self.started.append(now())
        if 1 < self.starts <= 1 + self._failing_starts:
            raise StartFailed("no such device")
        self._turn = asyncio.Lock()
        self._lost = asyncio.get_running_loop().create_future()

    async def score(self, candidates: Sequence[Candidate]) -> WorkerResult:
        lost = self.lost
        self.sent.append(tuple(candidates))
        async with self._turn:
            if lost.done():
                raise WorkerLost("gone")
            self.batches.append(tuple(candidates))
            hangs = any(self._hangs(candidate) for candidate in candidates)
            await asyncio.wait([lost], timeout=None if hangs else self._seconds)
            if any(self._kills(candidate) for candidate in candidates):
                self.die()
            if lost.done():
                raise WorkerLost("gone")
            answer = score_batch(self.backend, candidates)
            return WorkerResult(answer.scored, self._seconds, answer.failures)

    def die(self) -> None:
        """The device is gone from now on."""
        if not self.lost.done():
            self.lost.set_result(None)

    @property
    def lost(self) -> asyncio.Future[None]:
        assert self._lost is not None
        return self._lost

    async def sleep(self) -> None:
        await self._told("sleep")

    async def wake(self) -> None:
        await self._told("wake")

    async def _told(self, what: str) -> None:
        async with self._turn:
            await asyncio.wait([self.lost], timeout=self._seconds)
            if self.lost.done():
                raise WorkerLost("gone")
            self.naps.append(what)

    async def end(self, *, patience_s: float = 0.0) -> None:
        self.ends += 1
        if patience_s and self._turn.locked():
            await asyncio.wait([self.lost], timeout=patience_s)
        self.die()

    @property
    def starts(self) -> int:
        """How often it was told to start."""
        return len(self.started)

    @property
    def seen(self) -> list[Candidate]:
        """Every candidate that was on the device, once per run."""
        return [candidate for batch in self.batches for candidate in batch]


class Counts:
    """Reads what a Metrics counted."""

    def __init__(self, metrics: Metrics) -> None:
        self._registry = metrics.registry

    def __call__(self, name: str, **labels: str) -> float:
        return self._registry.get_sample_value(name, labels) or 0.0

    def outcomes(self) -> dict[str, float]:
        """Candidates by how they ended."""
        return {
            sample.labels["outcome"]: sample.value
            for metric in self._registry.collect()
            if metric.name == "jrm_candidates"
            for sample in metric.samples
            if sample.name == "jrm_candidates_total" and sample.value
        }


@asynccontextmanager
async def running(
    *workers: Worker,
    budget: int = 1_000_000,
    hang_timeout_s: float = 600.0,
    metrics: Metrics | None = None,
    patience_s: float = 30.0,
    **options: Any,
) -> AsyncIterator[Batcher]:
    """A started batcher that is stopped at the end."""
    batcher = Batcher(
        workers,
        max_batch_tokens=budget,
        hang_timeout_s=hang_timeout_s,
        metrics=metrics or Metrics(CollectorRegistry()),
        **({"clock": asyncio.get_running_loop().time} | options),
    )
    await asyncio.gather(*(worker.start() for worker in workers))
    batcher.start()
    try:
        yield batcher
    finally:
        await batcher.stop(patience_s)


def request_of(candidates: Sequence[Candidate], timeout_s: float = 600.0, tenant: str = "") -> Request:
    """A request whose candidates are prepared and not yet queued."""
    made = Request(tenant, now() + timeout_s, [len(candidates)])
    for entry, prepared in zip(made.entries, candidates, strict=True):
        entry.prepared = prepared
    return made


async def score(
    batcher: Batcher, candidates: Sequence[Candidate], timeout_s: float = 600.0, tenant: str = ""
) -> list[Any]:
    """One request: its results in order."""
    request = request_of(candidates, timeout_s, tenant)
    for entry in request.entries:
        batcher.put(entry)
    try:
        return [outcome.result for outcome in await request.outcomes()]
    finally:
        request.cancel()


def now() -> float:
    """The event loop's clock."""
    return asyncio.get_running_loop().time()


async def until(condition: Callable[[], bool]) -> None:
    """Give way to other tasks until the condition holds."""
    while not condition():  # noqa: ASYNC110 - it may be any condition, so there is no event to wait for
        await asyncio.sleep(0)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a test's coroutine; one that is stuck fails instead of waiting for the suite's own timeout."""
    return asyncio.run(asyncio.wait_for(main, 60))


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """The same on a virtual clock, for tests without threads and sockets: an hour passes at once."""
    return virtual_time.run(asyncio.wait_for(main, 1e6), grace_s=0.0)
