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
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jrm_client.replicas import first_turn
from jrm_service.bench.tables import table

from . import virtual_time
from .simulated import EDITS, SECONDS_PER_TOKEN, TOKENS, Call, Rank, SimulatedReplica, replicas

GROUPS = 4  # of a rank in a step
RANKS_PER_REPLICA = 2
BEFORE = 2  # steps before something goes wrong
PAUSE_S = 20.0  # between two steps, for sampling and for the update
SLOWNESS = 4.0
AWAY_S = 60.0
OVERLOAD_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Scaling:
    """A step of a fleet that is well. Times in seconds, ``rate`` in candidates per second, ``requests`` by replica."""

    numbered: bool
    replicas: int
    ranks: int
    rate: float
    p50: float
    p99: float
    most_requests: int
    mean_requests: float


def job(servers: Mapping[str, SimulatedReplica], size: int, *, numbered: bool = True, **options: float) -> list[Rank]:
    """The ranks of one training, which know their numbers or do not."""
    known = [{"RANK": f"{rank}", "WORLD_SIZE": f"{size}"} if numbered else {} for rank in range(size)]
    return [Rank(servers, first_turn(environment), **options) for environment in known]


async def scaling(count: int, *, numbered: bool) -> Scaling:
    """One step."""
    servers = await replicas(count)
    ranks = job(servers, RANKS_PER_REPLICA * count, numbered=numbered)
    gc.collect()
    gc.freeze()  # or every collection walks through what thousands of ranks know of a thousand replicas
    calls, seconds = await step(ranks)
    received = [server.received for server in servers.values()]
    latencies = [call.seconds for call in calls]
    return Scaling(
        numbered,
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


@dataclass(frozen=True)
class Disturbed:
    """Steps of a job while something is wrong with one replica. ``failed``: calls without rewards, by step."""

    fault: str
    steps: list[float]
    failed: list[int]


async def _slow(replica: SimulatedReplica) -> None:
    replica.device.slowness = SLOWNESS


async def _device_hangs(replica: SimulatedReplica) -> None:
    replica.device.hangs = True


async def _frozen(replica: SimulatedReplica) -> None:
    replica.freeze()


async def _killed(replica: SimulatedReplica) -> None:
    await replica.kill()
    await asyncio.sleep(AWAY_S)
    await replica.start()


async def _drained(replica: SimulatedReplica) -> None:
    await replica.drain()
    await asyncio.sleep(AWAY_S)
    await replica.start()


FAULTS: Mapping[str, Callable[[SimulatedReplica], Awaitable[None]]] = {
    f"{SLOWNESS:g} times slower": _slow,
    "its device hangs": _device_hangs,
    "accepts, never answers": _frozen,
    f"killed, back after {AWAY_S:g} s": _killed,
    f"drained, back after {AWAY_S:g} s": _drained,
}


async def disturbed(fault: str, count: int, steps: int) -> Disturbed:
    """A training of a few steps, with pauses; the fault comes in the middle of the third step."""
    servers = await replicas(count)
    ranks = job(servers, RANKS_PER_REPLICA * count)
    run = Disturbed(fault, [], [])
    happening: asyncio.Task[None] | None = None

    async def happen() -> None:
        await asyncio.sleep(0.5)
        await FAULTS[fault](servers[next(iter(servers))])

    for number in range(steps):
        if number == BEFORE:
            happening = asyncio.create_task(happen())
        calls, seconds = await step(ranks)
        run.steps.append(seconds)
        run.failed.append(sum(bool(call.failure) for call in calls))
        await asyncio.sleep(PAUSE_S)
    if happening is not None:
        await happening
    return run


def faults_table(runs: Sequence[Disturbed]) -> str:
    """A row for each fault."""
    rows = []
    for run in runs:
        usual, later = run.steps[BEFORE - 1], run.steps[BEFORE:]
        rows.append(
            [
                run.fault,
                f"{usual:.2f}",
                f"{later[0]:.2f}",
                f"{max(later[1:]):.2f}",
                f"{later[-1]:.2f}",
                f"{sum(run.failed)}",
                f"{sum(failed > 0 for failed in run.failed)} of {len(later)}",
            ]
        )
    return table(["one replica is", "step before, s", "then", "worst later", "last", "calls failed", "in steps"], rows)


@dataclass(frozen=True)
class Phase:
    """Calls of one job. ``failed`` by reason, ``soonest``: seconds of the call that failed after the shortest time.

    ``candidates`` are those of complete calls; p50 and p99 are seconds of such calls.
    """

    name: str
    calls: int
    failed: dict[str, int]
    soonest: float | None
    candidates: int
    p50: float | None
    p99: float | None


def phase(name: str, calls: Sequence[Call]) -> Phase:
    """What became of these calls."""
    done = [call for call in calls if not call.failure]
    p50, p99 = np.percentile([call.seconds for call in done], [50, 99]).tolist() if done else (None, None)
    return Phase(
        name,
        len(calls),
        dict(Counter(call.failure for call in calls if call.failure)),
        min((call.seconds for call in calls if call.failure), default=None),
        sum(call.candidates for call in done),
        p50,
        p99,
    )


async def overload(count: int, times: int, lasted: float) -> list[Phase]:
    """The sudden job asks without pause for ``times`` what the fleet scores within its ranks' timeout."""
    servers = await replicas(count)
    clock = asyncio.get_running_loop().time
    steady = job(servers, RANKS_PER_REPLICA * count, timeout_s=OVERLOAD_TIMEOUT_S)
    for _ in range(3):
        await step(steady)
    opens = clock()
    work = times * OVERLOAD_TIMEOUT_S * count / (SECONDS_PER_TOKEN * TOKENS)  # candidates
    sudden = job(servers, round(work / (GROUPS * EDITS)), timeout_s=OVERLOAD_TIMEOUT_S)

    async def calls(rank: Rank, until: float) -> list[Call]:
        made = []
        while clock() < until:
            call = await rank.call(GROUPS)
            made.append(replace(call, began=call.began - opens))
            if call.failure:
                await asyncio.sleep(1.0)  # whoever starts it anew
        return made

    both = [calls(rank, opens + 2 * lasted) for rank in steady] + [calls(rank, opens + lasted) for rank in sudden]
    made = await asyncio.gather(*both)
    of_steady = [call for one in made[: len(steady)] for call in one]
    return [
        phase("sudden job", [call for one in made[len(steady) :] for call in one]),
        phase("steady job, meanwhile", [call for call in of_steady if call.began < lasted]),
        phase("steady job, afterwards", [call for call in of_steady if call.began >= lasted]),
    ]


def overload_table(phases: Sequence[Phase]) -> str:
    """A row for each phase."""
    rows = [
        [
            one.name,
            f"{one.calls:,}",
            ", ".join(f"{number:,} {reason}" for reason, number in one.failed.items()) or "0",
            *("" if value is None else f"{value:.2f}" for value in (one.soonest, one.p50, one.p99)),
            f"{one.candidates:,}",
        ]
        for one in phases
    ]
    return table(["", "calls", "failed", "the first after, s", "p50 s", "p99 s", "candidates"], rows)


def scaling_table(runs: Sequence[Scaling]) -> str:
    """A row for each size; ``linear`` is the rate of a replica, that of the smallest fleet = 1."""
    alone = runs[0].rate / runs[0].replicas
    rows = [
        [
            f"{run.replicas:,}",
            "by number" if run.numbered else "anywhere",
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
        [
            "replicas",
            "ranks begin",
            "ranks",
            "candidates/s",
            "linear = 1",
            "call, p50 s",
            "p99 s",
            "requests, most / mean",
        ],
        rows,
    )


def run_scaling(quick: bool) -> list[dict[str, Any]]:
    """Fleets of every size."""
    sizes = (1, 4, 12) if quick else (1, 10, 100, 300, 1000)
    runs = [
        virtual_time.run(scaling(size, numbered=numbered), grace_s=0.0) for numbered in (False, True) for size in sizes
    ]
    print(scaling_table(runs), end="\n\n")
    return [asdict(run) for run in runs]


def run_faults(quick: bool) -> list[dict[str, Any]]:
    """Every fault."""
    count, steps = (4, 6) if quick else (20, 10)
    runs = [virtual_time.run(disturbed(fault, count, steps), grace_s=0.0) for fault in FAULTS]
    print(f"{count} replicas, {RANKS_PER_REPLICA * count} ranks\n\n{faults_table(runs)}", end="\n\n")
    return [asdict(run) for run in runs]


def run_overload(quick: bool) -> list[dict[str, Any]]:
    """One overload."""
    count, lasted = (2, 10.0) if quick else (12, 30.0)
    phases = virtual_time.run(overload(count, 2, lasted), grace_s=0.0)
    print(f"{count} replicas, {lasted:g} s of overload\n\n{overload_table(phases)}")
    return [asdict(one) for one in phases]


SCENARIOS = {"scaling": run_scaling, "faults": run_faults, "overload": run_overload}


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", action="append", choices=list(SCENARIOS), help="repeated for several; else all")
    parser.add_argument("--quick", action="store_true", help="small fleets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", type=Path, help="JSON file; scenarios that it has and this run has not stay in it")
    options = parser.parse_args()
    random.seed(options.seed)
    results = {name: SCENARIOS[name](options.quick) for name in options.only or SCENARIOS}
    if options.save:
        kept = json.loads(options.save.read_text()) if options.save.exists() else {}
        options.save.write_text(json.dumps(kept | results, indent=1) + "\n")


if __name__ == "__main__":
    main()
