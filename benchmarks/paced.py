"""``python -m benchmarks.paced``: ``jrm serve`` on a made-up device of known speed, which can be told to fail.

Settings come from ``JRM_…`` variables, as for ``jrm serve``; what is printed and the exit status are the same too.
Scores are those of ``--backend fake``: a function of the pixels and the instruction.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence

from jrm_service.cli import run
from jrm_service.score_runtime import Parts
from jrm_service.scoring.backend import Backend, BatchResult, WorkerLost
from jrm_service.scoring.fakes import FakeBackend, FakeBatch, FakePreparer, SlowBackend
from jrm_service.scoring.types import Candidate, ServedModel
from jrm_service.settings import Settings


class FaultyBackend:
    """Raises, hangs or is lost at random, for shares of its batches; otherwise it is the inner backend.

    Args:
        inner: what scores.
        seed: of the choice of batches.
        raises: share in which a RuntimeError is raised.
        hangs: share that comes ``hang_s`` seconds late.
        lost: share with which the device is gone for good.
    """

    def __init__(
        self, inner: Backend[FakeBatch], seed: int, *, raises: float, hangs: float, lost: float, hang_s: float
    ) -> None:
        self.device = inner.device
        self._inner = inner
        self._random = random.Random(seed)
        self._raises, self._hangs, self._lost, self._hang_s = raises, hangs, lost, hang_s

    def collate(self, candidates: Sequence[Candidate]) -> FakeBatch:
        """Collate as the inner backend does."""
        return self._inner.collate(candidates)

    def score(self, batch: FakeBatch) -> BatchResult:
        """Fail, or score as the inner backend does."""
        drawn = self._random.random()
        if drawn < self._raises:
            raise RuntimeError("a fault that the soak asked for")
        if drawn < self._raises + self._lost:
            raise WorkerLost("a loss that the soak asked for")
        if drawn < self._raises + self._lost + self._hangs:
            time.sleep(self._hang_s)
        return self._inner.score(batch)


def _parts(options: argparse.Namespace) -> Parts:
    def backend(number: int) -> FaultyBackend:
        paced = SlowBackend(
            FakeBackend(f"paced:{number}"),
            seconds=options.seconds_per_batch,
            seconds_per_candidate=options.seconds_per_candidate,
        )
        return FaultyBackend(
            paced,
            options.seed + number,
            raises=options.raises,
            hangs=options.hangs,
            lost=options.lost,
            hang_s=options.hang_s,
        )

    backends = [backend(number) for number in range(options.devices)]
    return Parts(ServedModel("jrm-paced", "paced", {"device": f"{options.devices} paced"}), FakePreparer(), backends)


def main() -> None:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=1, help="workers")
    parser.add_argument("--seconds-per-batch", type=float, default=0.0)
    parser.add_argument("--seconds-per-candidate", type=float, default=0.0)
    parser.add_argument("--raises", type=float, default=0.0, help="share of batches in which the backend raises")
    parser.add_argument("--hangs", type=float, default=0.0, help="share of batches that come --hang-s late")
    parser.add_argument("--hang-s", type=float, default=0.0, help="seconds; above JRM_HANG_TIMEOUT_S it is a hang")
    parser.add_argument("--lost", type=float, default=0.0, help="share of batches with which the device is gone")
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    options = parser.parse_args()
    run(Settings(), load=lambda: _parts(options))


if __name__ == "__main__":
    main()
