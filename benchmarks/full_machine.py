"""Whether one server keeps many devices busy, and two on one port: ``python -m benchmarks.full_machine``.

Devices are made up: each takes a fixed time for a candidate, and no CPU. A first run, on devices that take no time,
says what a candidate costs server and callers in CPU milliseconds. Predicted is what the cores can do at that cost, or
what the devices can do, if that is less: once with all cores of this machine, as if nothing else ran, and once with the
cores that server and callers together got. The measured rate is compared with the latter.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from jrm_service.bench.tables import machine, table

from .raw_callers import RawCallers
from .server_processes import Replica, free_port

EDITS = 12
CALLERS_PER_DEVICE = 4  # a group is half a batch: one batch on the device, one being built


@dataclass(frozen=True)
class Run:
    """``rate`` in candidates per second; ``server_s`` and ``callers_s`` are CPU seconds for each candidate."""

    rate: float
    server_s: float
    callers_s: float

    @property
    def candidate_s(self) -> float:
        """CPU seconds for each candidate, of server and callers."""
        return self.server_s + self.callers_s

    @property
    def cores(self) -> float:
        """Cores that server and callers got."""
        return self.rate * self.candidate_s


async def _load(replicas: Sequence[Replica], callers: int, side: int, seconds: float) -> Run:
    """Callers who wait for each answer. Counted from when each of them has had one: that one imports and connects."""
    async with RawCallers(replicas[0].url, edits=EDITS, side=side) as raw:

        async def call() -> int:
            reply = await raw.send(raw.group())
            if reply.status != 200 or reply.wrong:
                raise RuntimeError(f"status {reply.status}, {reply.wrong} wrong rewards")
            return EDITS

        async def caller(until: float) -> int:
            scored = 0
            while time.perf_counter() < until:
                scored += await call()
            return scored

        def clocks() -> tuple[float, float, float]:
            return time.perf_counter(), sum(replica.cpu_seconds.process for replica in replicas), time.process_time()

        await asyncio.gather(*(call() for _ in range(callers)))
        before = clocks()
        scored = sum(await asyncio.gather(*(caller(before[0] + seconds) for _ in range(callers))))
        took, used, own = (after - then for after, then in zip(clocks(), before, strict=True))
        return Run(scored / took, used / scored, own / scored)


def measure(servers: int, devices: int, candidate_s: float, side: int, seconds: float) -> Run:
    """``devices`` in all, of ``servers`` on one port."""
    settings: dict[str, object] = {"backend": "fake", "cache_entries": 0, "reuse_port": servers > 1}
    port, pace = free_port(), ["--seconds-per-candidate", candidate_s]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        replicas = [
            Replica(settings, [*pace, "--devices", devices // servers], Path(folder) / f"{number}", port)
            for number in range(servers)
        ]
        for replica in replicas:
            running.enter_context(replica)
        return asyncio.run(_load(replicas, CALLERS_PER_DEVICE * devices, side, seconds))


def row(servers: int, devices: int, candidate_s: float, cost: Run, run: Run) -> Sequence[object]:
    """What was predicted from ``cost``, and what was measured."""
    limit = devices / candidate_s
    quiet, here = (min(limit, cores / cost.candidate_s) for cores in (len(os.sched_getaffinity(0)), run.cores))
    return [
        f"{devices} of {1e3 * candidate_s:g} ms, {servers} server{'s' * (servers > 1)}",
        f"{limit:.0f}",
        f"{quiet:.0f}",
        f"{run.cores:.2f}",
        f"{here:.1f}",
        f"{run.rate:.1f}",
        f"{run.rate / here:.2f}",
        f"{run.rate / limit:.0%}",
        f"{1e3 * run.server_s:.1f} + {1e3 * run.callers_s:.1f}",
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--candidate-ms", type=float, nargs="+", default=[20.0, 40.0], help="of a device")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each run")
    parser.add_argument("--side", type=int, default=512, help="of the images, in pixels")
    options = parser.parse_args()
    print(machine())
    cost = measure(1, options.devices, 0.0, options.side, options.seconds)
    print(f"a candidate costs the server {1e3 * cost.server_s:.1f} and the callers {1e3 * cost.callers_s:.1f} ms\n")
    rows = []
    for candidate_s in (ms / 1e3 for ms in options.candidate_ms):
        for servers in (1, 2):
            run = measure(servers, options.devices, candidate_s, options.side, options.seconds)
            rows.append(row(servers, options.devices, candidate_s, cost, run))
    headings = [
        "devices",
        "their candidates/s",
        "predicted, all cores",
        "cores it got",
        "predicted",
        "measured",
        "ratio",
    ]
    print(table([*headings, "devices busy", "CPU ms, server + callers"], rows))


if __name__ == "__main__":
    main()
