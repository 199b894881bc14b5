"""A rolling restart in the middle of a run: is any candidate lost, doubled or scored wrongly?

``python -m benchmarks.rolling`` scores ``--candidates`` through the SDK, which knows the URLs of two replicas, while
the two are stopped as an orchestrator stops them (SIGTERM, then wait for exit status 0) and started again, in turn and
without a pause, until the last candidate is answered. Each replica has at least one restart. The scores are a function
of the pixels, so a reward that belongs to another candidate shows. Exits with 1 if anything was found.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jrm_client import AsyncJRMClient, JRMError
from jrm_service.bench.tables import machine, table

from .known_rewards import KnownGroup
from .ledger import Ledger
from .server_processes import Replica

EDITS = 12
GRACE_S = 30.0


@dataclass(frozen=True)
class Rolled:
    """What one run came to. ``statuses`` are the exit statuses of the stopped replicas, in order."""

    candidates: int
    ledger: Ledger
    failures: Sequence[str]
    statuses: Sequence[int]
    longest_stop: float
    seconds: float

    @property
    def problems(self) -> list[str]:
        """What must not happen and did."""
        lost = self.ledger.lost(self.candidates)
        found = {
            f"{lost} candidates without a score": lost,
            f"{self.ledger.doubled} candidates answered twice": self.ledger.doubled,
            f"{self.ledger.wrong} wrong rewards": self.ledger.wrong,
            f"{len(self.failures)} calls failed, the first: {next(iter(self.failures), '')}": self.failures,
            f"exit statuses {list(self.statuses)}": any(self.statuses),
            "fewer than two restarts": len(self.statuses) < 2,
        }
        return [problem for problem, count in found.items() if count]


async def roll(replicas: Sequence[Replica], candidates: int, callers: int, groups_per_call: int = 2) -> Rolled:
    """Score so many candidates, a multiple of EDITS, with so many callers, while the replicas are restarted."""
    numbers = iter(range(candidates // EDITS))
    ledger, failures = Ledger(), list[str]()
    statuses, stops = list[int](), list[float]()
    started = time.monotonic()

    async def caller(client: AsyncJRMClient) -> None:
        while taken := list(itertools.islice(numbers, groups_per_call)):
            groups = [KnownGroup(number, EDITS) for number in taken]
            pairs = [(group.source, edit, group.instruction) for group in groups for edit in group.edited]
            try:
                scores = iter(await client.score_batch(pairs))
            except JRMError as failure:
                failures.append(str(failure))
                continue
            for group in groups:
                ledger.group_answered(group, [score.reward for score in itertools.islice(scores, EDITS)])

    async def restart_in_turn(busy: asyncio.Task[None]) -> None:
        for number, replica in enumerate(itertools.cycle(replicas)):
            if busy.done() and number >= len(replicas):
                return
            began = time.monotonic()
            statuses.append(await asyncio.to_thread(replica.stop, 2 * GRACE_S))
            stops.append(time.monotonic() - began)
            await asyncio.to_thread(replica.start)

    async def all_callers() -> None:
        urls = [replica.url for replica in replicas]
        async with AsyncJRMClient(urls, timeout=120) as client, asyncio.TaskGroup() as tasks:
            for _ in range(callers):
                tasks.create_task(caller(client))

    busy = asyncio.create_task(all_callers())
    await restart_in_turn(busy)
    await busy
    return Rolled(candidates, ledger, failures, statuses, max(stops), time.monotonic() - started)


def replicas(folder: Path, seconds_per_candidate: float) -> list[Replica]:
    """Two, on devices of that speed."""
    settings = {"backend": "fake", "grace_s": GRACE_S, "cache_entries": 0}
    pace = ["--seconds-per-candidate", seconds_per_candidate, "--seconds-per-batch", 0.01]
    return [Replica(settings, pace, folder / f"replica-{number}.log") for number in (1, 2)]


def report(rolled: Rolled) -> str:
    """The table."""
    ledger = rolled.ledger
    rows: list[Sequence[object]] = [
        ["answered once, with the right reward", len(ledger.answers) - ledger.doubled - ledger.wrong],
        ["lost", ledger.lost(rolled.candidates)],
        ["doubled", ledger.doubled],
        ["wrong", ledger.wrong],
        ["calls that failed", len(rolled.failures)],
        ["restarts, each with exit status 0", f"{rolled.statuses.count(0)} of {len(rolled.statuses)}"],
        ["longest stop, s", f"{rolled.longest_stop:.2f}"],
        ["candidates/s", f"{rolled.candidates / rolled.seconds:.0f}"],
    ]
    return table([f"{rolled.candidates:,} candidates, 2 replicas", ""], rows)


def main() -> int:
    """Run and print; 1 when something was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=10_000, help=f"rounded up to groups of {EDITS}")
    parser.add_argument("--callers", type=int, default=4, help="calls under way at once, of two groups each")
    parser.add_argument("--seconds-per-candidate", type=float, default=0.005, help="of the made-up devices")
    options = parser.parse_args()
    print(f"{machine()}\n", flush=True)
    candidates = -(-options.candidates // EDITS) * EDITS
    with tempfile.TemporaryDirectory() as folder:
        first, second = replicas(Path(folder), options.seconds_per_candidate)
        with first, second:
            rolled = asyncio.run(roll([first, second], candidates, options.callers))
    print(report(rolled))
    for problem in rolled.problems:
        print(f"FOUND: {problem}")
    return 1 if rolled.problems else 0


if __name__ == "__main__":
    sys.exit(main())
