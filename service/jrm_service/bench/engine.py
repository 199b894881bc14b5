"""Measures the engine in this process: candidates/s, share of the matrix-product rate, latency, cost of a group."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch

from jrm_service.errors import CandidateError
from jrm_service.model.checkpoint_source import CheckpointSource
from jrm_service.scoring.backend import Backend
from jrm_service.scoring.local import score_batch
from jrm_service.scoring.types import Candidate, Score

from .device import linear_shapes, matrix_product_rate, wait_for
from .direct import finite_scores
from .flops import WorkCounter
from .pictures import Pictures, prepare
from .rounds import Rates, Turn

Step = Callable[[str], None]
"""Called with the name of each piece of work as it begins."""

_PRODUCT_TOKENS = {"cpu": 2048, "cuda": 8192}  # rows of the matrix product: about the tokens of a packed row
_MOST_BATCHES = 10  # per turn, since all prepared batches stay in memory
_MOST_LATENCIES = 20
_STEP_CANDIDATES = 288  # of a step in the paper


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    ``edits`` of a group and ``callers`` are the job's; ``side`` is that of the images that callers send, in pixels.
    Each figure is the median of ``rounds``, and a turn of a round takes about ``seconds``, but at least a batch.
    ``sizes`` are the group sizes of the sweep.
    """

    edits: int = 12
    callers: int = 24
    side: int = 512
    rounds: int = 3
    seconds: float = 5.0
    sizes: tuple[int, ...] = (1, 2, 4, 8, 12, 24)

    @property
    def step_groups(self) -> int:
        """Groups of a step: no batch needs to hold more."""
        return -(-_STEP_CANDIDATES // self.edits)

    @property
    def step_candidates(self) -> int:
        """The paper's 288, in whole groups."""
        return self.step_groups * self.edits


@dataclass(frozen=True, slots=True)
class EngineFigures:
    """What was measured in process. ``share`` and ``sizes_share`` are of ``matrix_product``, in FLOP/s.

    ``rate`` is in candidates per second, ``one_ms`` and ``group_ms`` the latency of one candidate and of one group of a
    source not seen before, collation included. ``sizes`` has candidates per second by edits of a group, in batches of
    one size. ``token_budget`` is what a batch may cost, ``batch_groups`` how many groups that is here, and
    ``peak_bytes`` what weights and batches took of a GPU's memory; None on a CPU.
    """

    batch_groups: int
    token_budget: int
    peak_bytes: int | None
    matrix_product: float
    rate: float
    share: float
    one_ms: float
    group_ms: float
    sizes: dict[int, float]
    sizes_share: dict[int, float]


def measure_engine(source: CheckpointSource, backend: Backend[Any], plan: Plan, step: Step) -> EngineFigures:
    """``backend`` is what ``source`` has loaded."""
    engine = Measured(source, backend, plan)
    step("matrix product")
    peak = engine.matrix_product()
    step(f"groups of {plan.edits}")
    budget = source.batch_tokens([backend])
    groups = engine.batch_groups(budget)
    rate = engine.rate(groups, plan.edits)
    step("one candidate")
    one_ms = engine.latency_ms(1)
    step("one group")
    group_ms = engine.latency_ms(plan.edits)
    sweep = Rates()
    for number in range(plan.rounds):
        step(f"groups of {plan.sizes[0]} to {plan.sizes[-1]}, round {number + 1} of {plan.rounds}")
        sweep.run({str(size): engine.turn(engine.swept_groups(size), size) for size in plan.sizes})
    sizes = {size: sweep.rate(str(size)) for size in plan.sizes}
    step("matrix product once more")
    peak = max(peak, engine.matrix_product())  # a machine that was busy at first would flatter every share
    return EngineFigures(
        batch_groups=groups,
        token_budget=budget,
        peak_bytes=torch.cuda.max_memory_allocated(backend.device) if backend.device.startswith("cuda") else None,
        matrix_product=peak,
        rate=rate,
        share=rate * engine.flops(groups, plan.edits) / peak,
        one_ms=one_ms,
        group_ms=group_ms,
        sizes=sizes,
        sizes_share={size: rate * engine.flops(engine.swept_groups(size), size) / peak for size, rate in sizes.items()},
    )


class Measured:
    """A warm backend with an endless supply of candidates that it has not seen, prepared as ``source`` does it."""

    def __init__(self, source: CheckpointSource, backend: Backend[Any], plan: Plan) -> None:
        self._source = source
        self._backend = backend
        self._plan = plan
        self._pictures = Pictures(plan.side, source=source.preparer.max_sources > 0)
        checkpoint = source.checkpoint
        self._counter = WorkCounter(checkpoint.config, checkpoint.image_spec)

    def fresh(self, groups: int, edits: int) -> list[Candidate]:
        """Candidates of new groups."""
        return prepare(self._source.preparer, self._pictures.groups(groups, edits))

    def matrix_product(self) -> float:
        """FLOP/s of products of the language model's own shapes, in the backbone's dtype."""
        device = self._backend.device
        return matrix_product_rate(
            device,
            getattr(torch, self._source.dtype),
            linear_shapes(self._source.checkpoint.config),
            tokens=_PRODUCT_TOKENS[device.partition(":")[0]],
            seconds=self._plan.seconds / 2,
        )

    def batch_groups(self, budget: int) -> int:
        """Groups of a batch that fits the budget, as many as a step has at most."""
        cost = self._source.cost(self.fresh(1, self._plan.edits))
        return max(1, min(budget // cost, self._plan.step_groups))

    def flops(self, groups: int, edits: int) -> float:
        """FLOPs of a candidate in batches of so many groups, as the engine works: shared work counts once."""
        return self._counter.packed(self.fresh(groups, edits)).flops / (groups * edits)

    def swept_groups(self, edits: int) -> int:
        """Groups of a batch in the sweep over sizes: as many candidates in each."""
        return max(1, self._plan.sizes[-1] // edits)

    def rate(self, groups: int, edits: int) -> float:
        """Candidates per second in batches of so many groups, the median of the plan's rounds."""
        rates = Rates()
        for _ in range(self._plan.rounds):
            rates.run({"engine": self.turn(groups, edits)})
        return rates.rate("engine")

    def turn(self, groups: int, edits: int) -> Turn:
        """Score batches of ``groups`` that nobody has seen, for about the plan's seconds; prepared beforehand."""
        started = time.perf_counter()
        self.score([self.fresh(groups, edits)])
        once = time.perf_counter() - started
        batches = [
            self.fresh(groups, edits) for _ in range(max(1, min(_MOST_BATCHES, round(self._plan.seconds / once))))
        ]
        return partial(self.score, batches)

    def score(self, batches: Sequence[Sequence[Candidate]]) -> list[Score]:
        """All batches, in order, as a worker scores them: the next one is collated in a thread while one runs, and one
        that does not fit the memory is scored in halves."""
        outcomes: list[Score | CandidateError] = []
        with ThreadPoolExecutor(1) as ahead:
            collated = ahead.submit(self._backend.collate, batches[0])
            for candidates, following in zip(batches, [*batches[1:], None], strict=True):
                batch = collated.result()
                if following is not None:
                    collated = ahead.submit(self._backend.collate, following)
                outcomes += score_batch(self._backend, candidates, batch).scored.outcomes
        wait_for(self._backend.device)
        return finite_scores(outcomes)

    def latency_ms(self, edits: int) -> float:
        """Median milliseconds of one group, collation included; each of a source not seen before."""
        seconds: list[float] = []
        while not seconds or (len(seconds) < _MOST_LATENCIES and sum(seconds) < self._plan.seconds):
            candidates = self.fresh(1, edits)
            started = time.perf_counter()
            finite_scores(self._backend.score(self._backend.collate(candidates)).outcomes)
            seconds.append(time.perf_counter() - started)
        return 1e3 * median(seconds)
