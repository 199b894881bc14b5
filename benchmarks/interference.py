"""What critiques cost those who score: ``/score`` by one caller, with and without others who ask for explanations."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import cycle
from statistics import median

import numpy as np

from jrm_client import AsyncJRMClient, Score
from jrm_client.aio import Pair

ALONE, EXPLAINING = "alone", "while explaining"


@dataclass
class Interference:
    """Seconds of every ``/score`` call, round by round, and how many explanations were finished meanwhile."""

    rounds: list[dict[str, list[float]]] = field(default_factory=list)
    explained: int = 0

    def percentile(self, name: str, share: float) -> float:
        """Seconds that ``share`` of 100 calls of all rounds stayed below."""
        return float(np.percentile([seconds for one in self.rounds for seconds in one[name]], share))

    def ratios(self, share: float) -> list[float]:
        """How many times longer that took while explaining, within each round."""
        return [float(np.percentile(one[EXPLAINING], share) / np.percentile(one[ALONE], share)) for one in self.rounds]

    def ratio(self, share: float) -> float:
        """The median of ``ratios``."""
        return median(self.ratios(share))

    @property
    def calls(self) -> int:
        """Timed calls of either kind."""
        return sum(len(one[ALONE]) for one in self.rounds)


async def measure(client: AsyncJRMClient, pairs: Sequence[Pair], *, rounds: int, callers: int) -> Interference:
    """Score every pair one after the other, alone and while ``callers`` explain without a pause, in turns.

    Every other round goes backwards: a drift of the machine's speed must favour nobody. Raises RuntimeError when a
    score differs in any bit from what the same candidate got before, or comes from a cache.
    """
    expected = [_number(await client.score(*pair)) for pair in pairs]  # also warms up
    found = Interference()
    for number in range(rounds):
        names = (ALONE, EXPLAINING) if number % 2 == 0 else (EXPLAINING, ALONE)
        seconds: dict[str, list[float]] = {}
        for name in names:
            async with explaining(client, pairs, callers if name == EXPLAINING else 0, found):
                seconds[name] = await _time(client, pairs, expected)
        found.rounds.append(seconds)
    return found


async def _time(
    client: AsyncJRMClient, pairs: Sequence[Pair], expected: Sequence[tuple[float | None, ...]]
) -> list[float]:
    seconds = []
    for pair, before in zip(pairs, expected, strict=True):
        began = time.perf_counter()
        score = await client.score(*pair)
        seconds.append(time.perf_counter() - began)
        if score.cached:
            raise RuntimeError("a score came from the server's cache: start it with --cache-entries 0")
        if _number(score) != before:
            raise RuntimeError(f"a score changed from {before} to {_number(score)}")
    return seconds


@asynccontextmanager
async def explaining(
    client: AsyncJRMClient, pairs: Sequence[Pair], callers: int, found: Interference
) -> AsyncIterator[None]:
    """Keep so many explain requests running within the block. It begins after the first answer, and ends idle."""
    waiting, stopped, first = cycle(pairs), False, asyncio.Event()

    async def caller() -> None:
        while not stopped:
            await client.explain(*next(waiting))
            found.explained += 1
            first.set()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(callers):
            tasks.create_task(caller())
        if callers:
            await first.wait()
        try:
            yield
        finally:
            stopped = True


def _number(score: Score) -> tuple[float | None, ...]:
    """All that a score says, to be compared exactly."""
    dimensions = [number for one in score.dimensions.values() for number in (one.mean, one.std)]
    return score.reward, score.reward_std, *dimensions
