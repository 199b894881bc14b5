"""The service as a contestant: a server process of our own, and callers of it."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jrm_client import AsyncJRMClient, JRMClient

from .pictures import Group

JRM = Path(sys.executable).with_name("jrm")
TIMEOUT_S = 600.0  # on a busy machine, slow is still an answer


@contextmanager
def server(checkpoint: Path, *flags: str) -> Iterator[str]:
    """URL of a server process on a free port, ready; default settings but for ``flags``. It ends with the block."""
    command = [str(JRM), "serve", "--checkpoint", str(checkpoint), "--port", "0", "--device", "cpu", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if found := re.match(r"ready: .* at (http://\S+),", line):
                    yield found[1]
                    return
            raise RuntimeError("the server did not become ready")
        finally:
            process.terminate()


def one_caller(url: str, groups: Sequence[Group]) -> list[float]:
    """Rewards of all groups, in order, from one ``score_batch`` call."""
    with JRMClient(url, timeout=TIMEOUT_S) as client:
        return [score.reward for score in client.score_batch([pair for group in groups for pair in group.pairs])]


@dataclass(frozen=True)
class Load:
    """What ``callers`` callers saw: rewards in order, seconds of each call, seconds for everything."""

    callers: int
    rewards: list[float]
    latencies: list[float]
    seconds: float

    @property
    def rate(self) -> float:
        """Candidates per second."""
        return len(self.rewards) / self.seconds

    def percentile(self, share: float) -> float:
        """Latency in seconds that ``share`` of 100 calls stayed below."""
        return float(np.percentile(self.latencies, share))


def many_callers(url: str, groups: Sequence[Group], callers: int) -> Load:
    """Callers with a client each; every one sends one candidate, waits, and takes the next that nobody has taken."""
    return asyncio.run(_many_callers(url, groups, callers))


async def _many_callers(url: str, groups: Sequence[Group], callers: int) -> Load:
    waiting = enumerate(pair for group in groups for pair in group.pairs)
    rewards: dict[int, float] = {}
    latencies: list[float] = []

    async def caller() -> None:
        async with AsyncJRMClient(url, timeout=TIMEOUT_S) as client:
            for index, (source, edited, instruction) in waiting:
                began = time.perf_counter()
                rewards[index] = (await client.score(source, edited, instruction)).reward
                latencies.append(time.perf_counter() - began)

    started = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(callers):
            tasks.create_task(caller())
    seconds = time.perf_counter() - started
    return Load(callers, [rewards[index] for index in sorted(rewards)], latencies, seconds)
