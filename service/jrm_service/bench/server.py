"""Measures the server as callers see it: a process of its own, called through the SDK."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import IO

import numpy as np

from jrm_client import AsyncJRMClient
from jrm_service.settings import PREFIX

from .engine import Plan, Step
from .pictures import Group, Pictures

TIMEOUT_S = 600.0  # generous: on a busy machine, a slow result still counts
_JRM = (sys.executable, "-c", "from jrm_client.cli import main; main()")
_LAST_LINES = 20


class ServerFailed(Exception):
    """The server did not become ready; the message is the end of what it printed."""


@contextmanager
def serving(checkpoint: Path | None, flags: Mapping[str, object]) -> Iterator[str]:
    """Run a server process on a free port until the block ends; yield its URL once it is ready. Raises ServerFailed.

    ``flags`` are settings by name; settings in the environment are ignored.
    """
    settings = {"port": 0} | dict(flags) | ({} if checkpoint is None else {"checkpoint": checkpoint})
    command = [*_JRM, "serve"]
    for name, value in settings.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    environment = {name: value for name, value in os.environ.items() if not name.upper().startswith(PREFIX)}
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log,
        subprocess.Popen(  # noqa: S603 - this package, with the caller's own flags
            command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        ) as process,
    ):
        try:
            yield _url(process, log)
        finally:
            process.terminate()


def _url(process: subprocess.Popen[str], log: IO[str]) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if ready := re.match(r"ready: .* at (http://\S+),", line):
            return ready[1]
    process.wait()
    log.seek(0)
    raise ServerFailed("".join(log.readlines()[-_LAST_LINES:]).strip() or "the server printed nothing")


@dataclass(frozen=True)
class Load:
    """The measurements of ``callers`` callers: rewards in order, seconds of each call, seconds in total."""

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
    """Callers that each keep one client, as trainers do, so that making a client is not part of a call."""

    def __init__(self, url: str, number: int) -> None:
        self._clients = [AsyncJRMClient(url, timeout=TIMEOUT_S) for _ in range(number)]
        self._runner = asyncio.Runner()

    def __enter__(self) -> Callers:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._runner.run(self._close())
        self._runner.close()

    def score(self, groups: Sequence[Group], callers: int | None = None) -> Load:
        """Score the groups; all callers, or the first ``callers``, each send the next one as soon as they are free."""
        return self._runner.run(self._score(groups, self._clients[:callers]))

    async def _score(self, groups: Sequence[Group], clients: Sequence[AsyncJRMClient]) -> Load:
        waiting = enumerate(groups)
        rewards: dict[int, list[float]] = {}
        latencies: list[float] = []

        async def caller(client: AsyncJRMClient) -> None:
            for index, group in waiting:
                began = time.perf_counter()
                scores = await client.score_group(group.source, group.instruction, group.edits)
                latencies.append(time.perf_counter() - began)
                rewards[index] = scores.rewards.tolist()

        started = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for client in clients:
                tasks.create_task(caller(client))
        seconds = time.perf_counter() - started
        return Load(len(clients), [reward for n in range(len(groups)) for reward in rewards[n]], latencies, seconds)

    async def _close(self) -> None:
        for client in self._clients:
            await client.close()


@dataclass(frozen=True, slots=True)
class ServerFigures:
    """What callers saw over HTTP.

    ``start_s`` is how long the server took to become ready, ``rate`` and ``alone_rate`` are candidates per second with
    all callers and with one; ``one_ms`` and ``group_ms`` are what one caller waits for one candidate and for one group,
    ``busy_group_ms`` what it waits for one among all the others. Medians. ``apart`` is the largest difference of a
    reward from the same candidate's in process.
    """

    start_s: float
    apart: float
    callers: int
    rate: float
    alone_rate: float
    one_ms: float
    group_ms: float
    busy_group_ms: float


def measure_server(
    checkpoint: Path | None,
    flags: Mapping[str, object],
    plan: Plan,
    known: tuple[Group, Sequence[float]],
    engine_rate: float,
    step: Step,
) -> ServerFigures:
    """Start a server, send it groups that it has not seen, end it. Raises ServerFailed.

    ``known`` is a group with the rewards that the engine gave it; ``engine_rate`` in candidates per second says how
    many groups a turn of the plan's seconds takes.
    """
    pictures = Pictures(plan.side, seed=1, source=known[0].source is not None)
    groups = max(1, min(plan.step_groups, round(plan.seconds * engine_rate / plan.edits)))
    step("a server starts")
    started = time.perf_counter()
    with serving(checkpoint, flags) as url, Callers(url, plan.callers) as callers:
        start_s = time.perf_counter() - started
        callers.score(pictures.groups(plan.callers, 1))  # every connection is open now
        rewards = callers.score([known[0]], 1).rewards
        step("one caller, one candidate")
        ones = callers.score(pictures.groups(groups, 1), 1)
        step(f"one caller, groups of {plan.edits}")
        alone = [callers.score(pictures.groups(groups, plan.edits), 1) for _ in range(plan.rounds)]
        step(f"{plan.callers} callers, groups of {plan.edits}")
        busy = [callers.score(pictures.groups(max(groups, plan.callers), plan.edits)) for _ in range(plan.rounds)]
    return ServerFigures(
        start_s=start_s,
        apart=max(abs(ours - theirs) for ours, theirs in zip(rewards, known[1], strict=True)),
        callers=plan.callers,
        rate=median(load.rate for load in busy),
        alone_rate=median(load.rate for load in alone),
        one_ms=1e3 * ones.percentile(50),
        group_ms=1e3 * median(load.percentile(50) for load in alone),
        busy_group_ms=1e3 * median(load.percentile(50) for load in busy),
    )
