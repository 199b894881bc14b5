"""The engine on a GPU: the 8B shape with random weights, built on the device; ``python -m benchmarks.gpu``.

Needs torch, transformers, numpy and pillow, and this repository and its ``client`` and ``service`` folders on
PYTHONPATH. First the rewards of trie and plain scorer are held against each other in the dtype that is measured; a
difference above ``--tolerance`` ends the run. Then it prints which attention is used, whether the host waits inside a
forward pass and what fits the memory; candidates per second of (a) the plain scorer, (b) padded batches and (c) the
engine, the FLOPs that each reaches as a share of a matrix product measured in the same run, the latency of one
candidate, and a sweep over group sizes. ``--shape tiny`` runs all of it on a CPU, to show that it works.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import count
from statistics import median, pstdev
from typing import Any

import torch
import transformers

from .inplace import InPlace, stand_in

stand_in()  # before the scorers are imported

from jrm_service.errors import CandidateError  # noqa: E402
from jrm_service.model.engine import TrieScorer  # noqa: E402
from jrm_service.model.scorer import PlainScorer  # noqa: E402
from jrm_service.scoring.types import Candidate, Score  # noqa: E402

from . import work  # noqa: E402
from .direct import score_alone, score_together  # noqa: E402
from .gpu_facts import facts  # noqa: E402
from .padded import PaddedScorer  # noqa: E402
from .rounds import Rates, Turn  # noqa: E402
from .shapes import SHAPES, Layout, Shape, group  # noqa: E402
from .tables import machine, table  # noqa: E402

PLAIN, PADDED, ENGINE = "(a) plain scorer", "(b) padded batches", "(c) engine"
LAYOUTS: tuple[Layout, ...] = ("paper", "prompt first")
GROUP = 12
GROUP_SIZES = (1, 2, 4, 8, 12, 24)
BATCH_SIZES = (4, 8, 16)  # sequences of a padded batch that are tried
# Work of a round; on a CPU only as much as it takes to run every line.
LARGE = {"calls": 4, "groups": 4, "alone": 12}
SMALL = {"calls": 2, "groups": 1, "alone": 2}


@dataclass
class Bench:
    """The scorers over equal weights, and groups that none of them has seen."""

    shape: Shape
    device: str
    dtype: torch.dtype
    calls: int  # batches of the engine in a round
    groups: int  # groups of a batch
    alone: int  # candidates of a round for the plain scorer

    def __post_init__(self) -> None:
        stock = InPlace(self.shape)
        checkpoint: Any = stock
        self.plain = PlainScorer(checkpoint, self.device, self.dtype)
        self.padded = PaddedScorer(
            self.plain.collate, *stock.load_model(self.device, self.dtype), self.device, BATCH_SIZES[0]
        )
        other: Any = InPlace(self.shape)
        self.engine = TrieScorer(other, self.device, self.dtype)
        self.seeds: Iterator[int] = count()

    def fresh(self, layout: Layout, size: int, groups: int = 1) -> list[Candidate]:
        """Candidates of new groups of ``size``."""
        return [one for _ in range(groups) for one in group(self.shape, layout, size, seed=next(self.seeds))]

    def run_engine(self, batches: Sequence[Sequence[Candidate]]) -> list[Score | CandidateError]:
        """All batches; the next one is collated in a thread while one runs, as the service does it."""
        with ThreadPoolExecutor(1) as ahead:
            outcomes = []
            following = ahead.submit(self.engine.collate, batches[0])
            for number in range(len(batches)):
                batch = following.result()
                if number + 1 < len(batches):
                    following = ahead.submit(self.engine.collate, batches[number + 1])
                outcomes += self.engine.score(batch).outcomes
        return outcomes


def matrix_product_rate(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of the best of several runs of square matrix products."""
    side, repeats = (8192, 20) if device != "cpu" else (256, 4)
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(5):
        _wait(device)
        started = time.perf_counter()
        for _ in range(repeats):
            torch.mm(left, right)
        _wait(device)
        best = max(best, 2 * side**3 * repeats / (time.perf_counter() - started))
    return best


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


def check(bench: Bench, tolerance: float) -> str:
    """Rewards of the engine against those of the plain scorer. Raises RuntimeError when they are too far apart."""
    rows = []
    for layout in LAYOUTS:
        candidates = bench.fresh(layout, GROUP)
        expected = score_alone(bench.plain, candidates)
        for name, rewards in (
            (PADDED, score_together(bench.padded, candidates)),
            (ENGINE, score_together(bench.engine, candidates)),
        ):
            worst = max(abs(ours - theirs) for ours, theirs in zip(rewards, expected, strict=True))
            rows.append([f"{layout}: {name}", f"{worst:.1e}", f"{pstdev(expected):.1e}"])
            if worst > tolerance:
                raise RuntimeError(f"{layout}: {name} differs from {PLAIN} by {worst:.2g}: its speed means nothing")
    return table([f"{GROUP} candidates", f"largest difference from {PLAIN}", "spread of the rewards"], rows)


def compare(bench: Bench, layout: Layout, rounds: int, peak: float) -> str:
    """(a), (b) and (c) in turns, with the FLOPs that each has really done as a share of the matrix product's."""
    tried = Rates()
    for _ in range(2):
        few = bench.fresh(layout, GROUP)[: bench.alone]
        tried.run({str(size): _padded_turn(bench, size, few) for size in BATCH_SIZES})
    bench.padded.batch_size = max(BATCH_SIZES, key=lambda size: tried.rate(str(size)))
    rates = Rates()
    for _ in range(rounds):
        batches = [bench.fresh(layout, GROUP, bench.groups) for _ in range(bench.calls)]
        few = batches[0][: bench.alone]
        rates.run(
            {
                PLAIN: partial(score_alone, bench.plain, few),
                PADDED: partial(score_together, bench.padded, few),
                ENGINE: partial(bench.run_engine, batches),
            }
        )
    unshared = work.one_by_one(bench.shape, batches[0]).flops / len(batches[0])
    costs = {
        PLAIN: unshared,
        PADDED: unshared,  # equal lengths: nothing is padded
        ENGINE: work.as_trie(bench.shape, batches[0]).flops / len(batches[0]),
    }
    rows = [
        [name, f"{rates.rate(name):.2f}", f"{rates.ratio(name, PLAIN):.2f}", f"{rates.rate(name) * cost / peak:.0%}"]
        for name, cost in costs.items()
    ]
    title = f"{layout}: batches of {bench.groups} x {GROUP}, padded {bench.padded.batch_size}"
    return table([title, "candidates/s", "ratio", "of the matrix product"], rows)


def _padded_turn(bench: Bench, size: int, candidates: list[Candidate]) -> Turn:
    def turn() -> list[float]:
        bench.padded.batch_size = size
        return score_together(bench.padded, candidates)

    return turn


def latency(bench: Bench, layout: Layout, times: int) -> str:
    """Milliseconds of a single candidate of a source not seen before, collation included."""
    rows = []
    for name, scorer in ((PLAIN, bench.plain), (ENGINE, bench.engine)):
        seconds = []
        for _ in range(times):
            candidates = bench.fresh(layout, 1)
            started = time.perf_counter()
            score_together(scorer, candidates)
            seconds.append(time.perf_counter() - started)
        rows.append([name, f"{median(seconds) * 1e3:.1f}", f"{max(seconds) * 1e3:.1f}"])
    return table([f"{layout}: one candidate", "median, ms", "worst, ms"], rows)


def group_sizes(bench: Bench, layout: Layout, rounds: int, peak: float) -> str:
    """The engine on batches of one size that hold groups of G each."""
    largest = max(GROUP_SIZES)
    rates = Rates()
    for _ in range(rounds):
        turns: dict[str, Turn] = {}
        for size in GROUP_SIZES:
            batches = [bench.fresh(layout, size, largest // size) for _ in range(bench.calls)]
            turns[str(size)] = partial(bench.run_engine, batches)
        rates.run(turns)
    rows = []
    for size in GROUP_SIZES:
        cost = work.as_trie(bench.shape, group(bench.shape, layout, size)).flops / size
        rate = rates.rate(str(size))
        rows.append([size, f"{rate:.2f}", f"{rates.ratio(str(size), '1'):.2f}", f"{rate * cost / peak:.0%}"])
    return table([f"{layout}: G, {largest} candidates a batch", "candidates/s", "ratio", "of the matrix product"], rows)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tolerance", type=float, default=0.1, help="largest difference of a reward that is accepted")
    arguments = parser.parse_args()
    dtype = getattr(torch, arguments.dtype)
    on_cpu = arguments.device == "cpu"
    where = machine() if on_cpu else torch.cuda.get_device_name(arguments.device)
    print(f"{where}; torch {torch.__version__}, transformers {transformers.__version__}, {arguments.dtype}")
    bench = Bench(SHAPES[arguments.shape], arguments.device, dtype, **(SMALL if on_cpu else LARGE))
    print(f"\n{check(bench, arguments.tolerance)}", flush=True)
    print("\n" + "\n".join(facts(bench.engine, bench.fresh("paper", GROUP))), flush=True)
    peak = matrix_product_rate(arguments.device, dtype)
    print(f"\nmatrix product: {peak / 1e12:.3g} TFLOP/s", flush=True)
    for layout in LAYOUTS:
        print(f"\n{compare(bench, layout, arguments.rounds, peak)}", flush=True)
        print(f"\n{latency(bench, layout, times=20 if not on_cpu else 3)}", flush=True)
        print(f"\n{group_sizes(bench, layout, arguments.rounds, peak)}", flush=True)


if __name__ == "__main__":
    main()
