"""Thousands of ranks and up to 1,000 replicas in one process, on a virtual clock: ``python -m benchmarks.fleet``.

``benchmarks.simulated`` says what of it is real. A step begins on all ranks at the same moment, and is over when the
last of them has its rewards.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from jrm_service.bench.tables import table

from . import virtual_time
from .simulated import Call, Rank, replicas

GROUPS = 4  # of a rank in a step
RANKS_PER_REPLICA = 2


@dataclass(frozen=True)
class Scaling:
    """Steps of a fleet that is well. Times in seconds, ``rate`` in candidates per second, ``requests`` by replica."""

    replicas: int
    ranks: int
    rate: float
    p50: float
    p99: float
    most_requests: int
    mean_requests: float


async def scaling(count: int, steps: int) -> Scaling:
    """The last of a few steps."""
    servers = await replicas(count)
    ranks = [Rank(servers, random.randrange(2**16)) for _ in range(RANKS_PER_REPLICA * count)]
    gc.collect()
    gc.freeze()  # or every collection walks through what thousands of ranks know of a thousand replicas
    for _ in range(steps):
        for server in servers.values():
            server.received = 0
        calls, seconds = await step(ranks)
    received = [server.received for server in servers.values()]
    latencies = [call.seconds for call in calls]
    return Scaling(
        count,
        len(ranks),
        sum(call.candidates for call in calls if not call.failure) / seconds,
        float(np.percentile(latencies, 50)),
        float(np.percentile(latencies, 99)),
        max(received),
        sum(received) / count,
    )


async def step(ranks: Sequence[Rank]) -> tuple[list[Call], float]:
    """One step: the calls of all ranks, and the seconds until the last of them was over."""
    began = asyncio.get_running_loop().time()
    calls = await asyncio.gather(*(rank.call(GROUPS) for rank in ranks))
    return calls, asyncio.get_running_loop().time() - began


def scaling_table(runs: Sequence[Scaling]) -> str:
    """A row for each size; ``linear`` is the rate of a replica, that of the smallest fleet = 1."""
    alone = runs[0].rate / runs[0].replicas
    rows = [
        [
            f"{run.replicas:,}",
            f"{run.ranks:,}",
            f"{run.rate:,.0f}",
            f"{run.rate / run.replicas / alone:.3f}",
            f"{run.p50:.2f}",
            f"{run.p99:.2f}",
            f"{run.most_requests} / {run.mean_requests:g}",
        ]
        for run in runs
    ]
    return table(
        ["replicas", "ranks", "candidates/s", "linear = 1", "call, p50 s", "p99 s", "requests, most / mean"], rows
    )


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small fleets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", type=Path, help="write what was measured as JSON")
    options = parser.parse_args()
    random.seed(options.seed)
    sizes = (1, 4, 12) if options.quick else (1, 10, 100, 300, 1000)
    scaled = [virtual_time.run(scaling(size, steps=2), grace_s=0.0) for size in sizes]
    print(scaling_table(scaled))
    if options.save:
        results = {"scaling": [asdict(run) for run in scaled]}
        options.save.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
