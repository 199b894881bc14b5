"""`make soak`: Redis, workers, replicas and clients killed at random, for as long as you like. Is anything lost?

Two replicas share a real Redis; client processes score groups through the SDK, which knows both URLs. Meanwhile, in an
order and at moments that ``--seed`` decides, Redis is killed and started again, one replica is killed and started
again, and clients are killed in mid-request; a client's successor takes over what it had not answered. The made-up
devices of both replicas raise and hang, and those of the killed one are lost for good. The other replica is never
killed, so that its memory can be followed from the warm-up to the end.

Checked: every candidate of every job is answered exactly once, with the right reward (typed errors in between come
from the devices that raise, and are counted); both replicas have nothing left in their queues at the end and stop with
exit status 0; and, in a run of at least ten minutes, the memory of the replica that lives on is flat within 5% after
the warm-up, the first fifth. Exits with 1 when a check fails.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from jrm_service.bench.tables import machine, table

from .chaos import Chaos, Client, beside, metric, valkey
from .ledger import Ledger
from .server_processes import Replica
from .soak_jobs import Jobs

FLAT = 0.05
LONG_ENOUGH_S = 600.0  # for a verdict about memory
_WARM_UP = 0.2
_SAMPLES_S = 1.0
_ALLOWED = {"internal"}  # what a candidate gets whose device raised, or hung twice
_HANG_S = 1.0


@dataclass(frozen=True)
class Soaked:
    """What one run came to. ``memory``: resident bytes of the replica that lives on, sampled evenly."""

    seconds: float
    candidates: int
    unfinished: int
    ledger: Ledger
    failures: Counter[str]
    done: Counter[str]
    memory: Sequence[int]
    left_in_queues: int
    statuses: Sequence[int]
    cached: float

    @property
    def growth(self) -> float:
        """Memory in the last tenth of the run, over that just after the warm-up, minus 1."""
        warm = self.memory[int(_WARM_UP * len(self.memory)) :]
        tenth = max(1, len(self.memory) // 10)
        return mean(warm[-tenth:]) / mean(warm[:tenth]) - 1.0

    @property
    def problems(self) -> list[str]:
        """What must not happen and did."""
        ledger = self.ledger
        lost = ledger.lost(self.candidates)
        strange = {code: count for code, count in ledger.errors.items() if code not in _ALLOWED}
        found = {
            f"{lost} candidates without an answer": lost,
            f"{self.unfinished} jobs unfinished": self.unfinished,
            f"{ledger.doubled} candidates answered twice": ledger.doubled,
            f"{ledger.wrong} wrong rewards": ledger.wrong,
            f"errors that no fault explains: {strange}": strange,
            f"{self.left_in_queues} candidates left in the queues": self.left_in_queues,
            f"exit statuses {list(self.statuses)}": any(self.statuses),
            "no work was done": not self.candidates,
            f"memory changed by {self.growth:+.1%}": self.seconds >= LONG_ENOUGH_S and abs(self.growth) > FLAT,
        }
        return [problem for problem, count in found.items() if count]


def _replicas(folder: Path, redis_url: str, seed: int) -> tuple[Replica, Replica]:
    settings = {
        "backend": "fake",
        "redis_url": redis_url,
        "cache_entries": 512,  # full before the warm-up is over
        "hang_timeout_s": _HANG_S,
        "log_format": "json",
    }
    faults = ["--devices", 2, "--seconds-per-candidate", 0.002, "--seconds-per-batch", 0.01]
    faults += ["--raises", 0.02, "--hangs", 0.004, "--hang-s", 2.5 * _HANG_S]
    lives_on = Replica(settings, [*faults, "--seed", seed], folder / "lives-on.log")
    victim = Replica(settings, [*faults, "--lost", 0.002, "--seed", seed + 100], folder / "victim.log")
    return lives_on, victim


async def _sample(replica: Replica, memory: list[int]) -> None:
    while True:
        memory.append(replica.resident_bytes)
        await asyncio.sleep(_SAMPLES_S)


async def soak(seconds: float, seed: int, *, clients: int, pause_s: float, folder: Path) -> Soaked:
    """One run: so long under load, then until everything that was begun is answered."""
    started = time.monotonic()
    memory: list[int] = []
    jobs = Jobs(random.Random(seed))
    with valkey() as redis:
        lives_on, victim = _replicas(folder, redis.connection_url, seed)
        with lives_on, victim:
            until = time.monotonic() + seconds
            urls = f"{lives_on.url},{victim.url}"
            chaos = Chaos(redis, victim, random.Random(seed), pause_s)
            chaos.clients = [Client(urls, jobs, lambda: not chaos.over) for _ in range(clients)]
            async with (
                beside(_sample(lives_on, memory)),
                beside(chaos.watch()),
                asyncio.TaskGroup() as tasks,
            ):
                tasks.create_task(chaos.run(until))
                for process in chaos.clients:
                    tasks.create_task(process.run())
            for replica in (lives_on, victim):
                chaos.done["batches in which a device raised"] += int(metric(replica, "jrm_batch_failures_total"))
                chaos.done["workers that hung"] += int(metric(replica, "jrm_worker_failures_total", reason="hung"))
                chaos.done["workers that were lost"] += int(metric(replica, "jrm_worker_failures_total", reason="lost"))
            cached = metric(lives_on, "jrm_cache_hits_total")
            left = sum(int(metric(replica, "jrm_queue_depth")) for replica in (lives_on, victim))
            statuses = [await asyncio.to_thread(replica.stop) for replica in (lives_on, victim)]
    took = time.monotonic() - started
    return Soaked(
        took, jobs.candidates, jobs.unfinished, jobs.ledger, jobs.failures, chaos.done, memory, left, statuses, cached
    )


def report(soaked: Soaked) -> str:
    """The table: what was done, and what came of it."""
    ledger = soaked.ledger
    mib = [size / 2**20 for size in soaked.memory]
    verdict = "" if soaked.seconds >= LONG_ENOUGH_S else " (too short a run for a verdict)"
    rows: list[Sequence[object]] = [[name, count] for name, count in sorted(soaked.done.items())]
    rows += [
        ["candidates", soaked.candidates],
        ["answered exactly once, with the right reward", len(ledger.answers) - ledger.doubled - ledger.wrong],
        ["lost / doubled / wrong", f"{ledger.lost(soaked.candidates)} / {ledger.doubled} / {ledger.wrong}"],
        ["typed errors on the way, scored when sent again", dict(ledger.errors) or 0],
        ["calls that the SDK gave up, made again", sum(soaked.failures.values())],
        ["scores from a cache, replica that lives on", f"{soaked.cached:.0f}"],
        ["left in the queues", soaked.left_in_queues],
        ["exit statuses", list(soaked.statuses)],
        ["memory at the start / after the warm-up / at the end", _three(mib)],
        ["memory, change after the warm-up", f"{soaked.growth:+.2%}{verdict}"],
    ]
    return table([f"{soaked.seconds:.0f} s, 2 replicas, Redis", ""], rows)


def _three(mib: Sequence[float]) -> str:
    return " / ".join(f"{size:.1f}" for size in (mib[0], mib[int(_WARM_UP * len(mib))], mib[-1])) + " MiB"


def main() -> int:
    """Run and print; 1 when a check fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=LONG_ENOUGH_S, help="under load")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    parser.add_argument("--clients", type=int, default=2, help="processes")
    parser.add_argument("--pause-s", type=float, default=4.0, help="mean pause between two kills, in seconds")
    parser.add_argument("--logs", type=Path, help="folder for the replicas' logs; by default they are thrown away")
    options = parser.parse_args()
    print(f"{machine()}; seed {options.seed}\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        logs = options.logs or Path(folder)
        logs.mkdir(parents=True, exist_ok=True)
        run = soak(options.seconds, options.seed, clients=options.clients, pause_s=options.pause_s, folder=logs)
        soaked = asyncio.run(run)
    print(report(soaked))
    for problem in soaked.problems:
        print(f"FOUND: {problem}")
    return 1 if soaked.problems else 0


if __name__ == "__main__":
    sys.exit(main())
