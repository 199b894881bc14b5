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


class Callers:
    """Callers with a client each, which they keep, as trainers do: what making one costs is not part of a call."""

    def __init__(self, url: str, number: int) -> None:
        self._clients = [AsyncJRMClient(url, timeout=TIMEOUT_S) for _ in range(number)]
        self._runner = asyncio.Runner()

    def __enter__(self) -> Callers:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._runner.run(self._close())
        self._runner.close()

    def score(self, groups: Sequence[Group], callers: int | None = None) -> Load:
        """Every caller sends one candidate, waits, and takes the next that nobody has taken; all callers, or some."""
        return self._runner.run(self._score(groups, self._clients[:callers]))

    async def _score(self, groups: Sequence[Group], clients: Sequence[AsyncJRMClient]) -> Load:
        waiting = enumerate(pair for group in groups for pair in group.pairs)
        rewards: dict[int, float] = {}
        latencies: list[float] = []

        async def caller(client: AsyncJRMClient) -> None:
            for index, (source, edited, instruction) in waiting:
                began = time.perf_counter()
                rewards[index] = (await client.score(source, edited, instruction)).reward
                latencies.append(time.perf_counter() - began)

        started = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for client in clients:
                tasks.create_task(caller(client))
        seconds = time.perf_counter() - started
        return Load(len(clients), [rewards[index] for index in sorted(rewards)], latencies, seconds)

    async def _close(self) -> None:
        for client in self._clients:
            await client.close()
