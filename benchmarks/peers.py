"""What people run instead of the engine: transformers on padded batches, and vLLM's pooling runner.

Each runs in a process of its own, and never two at once: vLLM's workers keep the cores busy even while they wait. A
peer is started, scores a group whose rewards are known, is timed for some rounds, and ends:
``python -m benchmarks.peers NAME JOB`` prints what it found as one line of JSON, and ``measured`` starts that.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from jrm_service.bench.direct import score_together
from jrm_service.bench.pictures import prepare
from jrm_service.bench.rounds import Rates
from jrm_service.model.checkpoint import Checkpoint, open_checkpoint
from jrm_service.scoring.backend import Backend
from jrm_service.scoring.preparing import CheckpointPreparer
from jrm_service.scoring.types import Candidate

from .padded import PaddedScorer
from .pictures import Pictures
from .pooling import PoolingScorer

PADDED, POOLING = "(b) padded batches", "(f) vLLM pooling"
PEERS = {"padded": PADDED, "vllm": POOLING}
BATCH_SIZES = (2, 4, 8)  # sequences of a padded batch that are tried
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Job:
    """What a peer scores: ``rounds`` of ``groups`` with ``edits`` each, of images ``side`` pixels square.

    Padded batches share nothing, so their speed does not depend on how many candidates there are: of a round they
    score ``alone``.
    """

    checkpoint: str
    device: str
    dtype: str
    rounds: int
    groups: int
    edits: int
    alone: int
    side: int


@dataclass(frozen=True)
class Peer:
    """What a peer found: ``rates`` in candidates per second by round, and the ``rewards`` of ``known_group``."""

    name: str
    how: str
    rates: list[float]
    rewards: list[float]


def here() -> list[str]:
    """Keys of the ``PEERS`` that can run in this environment."""
    return [name for name in PEERS if name != "vllm" or importlib.util.find_spec("vllm") is not None]


def measured(name: str, job: Job) -> Peer:
    """Run a peer in a process of its own. Raises RuntimeError, with the end of its log, when it fails."""
    command = [sys.executable, "-m", "benchmarks.peers", name, json.dumps(asdict(job))]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        raise RuntimeError(f"{name} failed:\n" + "\n".join(finished.stderr.splitlines()[-20:]))
    return Peer(**json.loads(finished.stdout.splitlines()[-1]))


def known_pictures(side: int) -> Pictures:
    """Where the group comes from whose rewards are compared; none of the timed ones is among its groups."""
    return Pictures(side, seed=1)


def _run(name: str, job: Job) -> Peer:
    checkpoint = open_checkpoint(job.checkpoint)
    preparer, pictures = CheckpointPreparer(checkpoint), Pictures(job.side)

    def fresh(groups: int) -> list[Candidate]:
        return prepare(preparer, [pictures.group(job.edits) for _ in range(groups)])

    start = {PADDED: _padded, POOLING: _pooling}[name]
    scorer, how, most = start(checkpoint, job, fresh)
    rewards = score_together(scorer, prepare(preparer, [known_pictures(job.side).group(job.edits)]))
    rates = Rates()
    for _ in range(job.rounds):
        rates.run({name: partial(score_together, scorer, fresh(job.groups)[:most])})
    if isinstance(scorer, PoolingScorer):
        scorer.shutdown()
    return Peer(name, how, [of_round[name] for of_round in rates.rounds], rewards)


def _padded(
    checkpoint: Checkpoint, job: Job, fresh: Callable[[int], list[Candidate]]
) -> tuple[Backend[Any], str, int | None]:
    """The padded scorer, with the batch size that is fastest here."""
    scorer = PaddedScorer(checkpoint, job.device, getattr(torch, job.dtype), BATCH_SIZES[0])

    def sized(size: int, candidates: list[Candidate]) -> list[float]:
        scorer.batch_size = size
        return score_together(scorer, candidates)

    rates = Rates()
    for _ in range(2):
        candidates = fresh(1)[:4]
        rates.run({str(size): partial(sized, size, candidates) for size in BATCH_SIZES})
    scorer.batch_size = max(BATCH_SIZES, key=lambda size: rates.rate(str(size)))
    return scorer, f"batches of {scorer.batch_size} sequences", job.alone


def _pooling(
    checkpoint: Checkpoint, job: Job, _fresh: Callable[[int], list[Candidate]]
) -> tuple[Backend[Any], str, int | None]:
    from vllm import __version__

    return PoolingScorer(checkpoint, job.device, job.dtype), f"vLLM {__version__}, prefix caching on", None


def main() -> None:
    """Run one peer in this process."""
    name, job = sys.argv[1:]
    print(json.dumps(asdict(_run(name, Job(**json.loads(job))))))


if __name__ == "__main__":
    main()
