"""What the tests of the queue share: candidates of an exact length, a clock by hand, a running batcher."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import numpy as np
from prometheus_client import CollectorRegistry

from jrm_service.metrics import Metrics
from jrm_service.scoring.backend import Backend
from jrm_service.scoring.batcher import Batcher
from jrm_service.scoring.types import Candidate, Image, Text, TokenSequence

T = TypeVar("T")

_numbers = itertools.count()
_PIXELS = np.zeros((1, 1, 3), dtype=np.uint8)


def candidate(tokens: int = 1, source: str | None = None, instruction: str = "edit") -> Candidate:
    """A candidate of exactly ``tokens`` tokens, with a source of its own unless one is named."""
    number = next(_numbers)
    return Candidate(
        source=Image((source or f"source {number}").encode(), _PIXELS, 1),
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
    *backends: Backend[Any],
    budget: int = 1_000_000,
    max_queue: int = 10_000,
    hang_timeout_s: float = 600.0,
    metrics: Metrics | None = None,
    grace_s: float = 30.0,
    **options: Any,
) -> AsyncIterator[Batcher]:
    """A started batcher that is stopped at the end."""
    batcher = Batcher(
        backends,
        max_batch_tokens=budget,
        max_queue=max_queue,
        hang_timeout_s=hang_timeout_s,
        metrics=metrics or Metrics(CollectorRegistry()),
        **options,
    )
    await batcher.start()
    try:
        yield batcher
    finally:
        await batcher.stop(grace_s)


async def score(batcher: Batcher, candidates: Sequence[Candidate], timeout_s: float = 600.0) -> list[Any]:
    """One request: its results in order."""
    with batcher.admit(len(candidates), timeout_s) as ticket:
        for index, one in enumerate(candidates):
            ticket.put(index, one)
        return [outcome.result for outcome in await ticket.outcomes()]


async def until(condition: Callable[[], bool]) -> None:
    """Give way to other tasks until the condition holds."""
    while not condition():  # noqa: ASYNC110 - it may be any condition, so there is no event to wait for
        await asyncio.sleep(0)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a test's coroutine; one that is stuck fails instead of waiting for the suite's own timeout."""
    return asyncio.run(asyncio.wait_for(main, 60))
