"""What speed depends on: the length of a packed row, the size of a group, the number of callers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import ceil
from statistics import median

import torch

from jrm_service.bench.direct import score_alone, score_together
from jrm_service.bench.rounds import Rates, Turn
from jrm_service.bench.server import Load
from jrm_service.bench.tables import table
from jrm_service.model.checkpoint import Checkpoint
from jrm_service.model.engine import TrieScorer

from .contestants import Contestants

ALONE = "one by one"


def row_lengths(contestants: Contestants, checkpoint: Checkpoint, lengths: Sequence[int], rounds: int) -> Rates:
    """The engine with rows of different length in tokens, against the plain scorer on part of the same group."""
    engines = {length: TrieScorer(checkpoint, "cpu", torch.float32, row_tokens=length) for length in lengths}
    rates = Rates()
    for _ in range(rounds):
        candidates = contestants.prepare(contestants.fresh(1))
        turns: dict[str, Turn] = {ALONE: partial(score_alone, contestants.plain, candidates[:3])}
        for length, engine in engines.items():
            turns[f"{length:,}"] = partial(score_together, engine, candidates)
        rates.run(turns)
    return rates


def group_sizes(contestants: Contestants, sizes: Sequence[int], rounds: int) -> Rates:
    """The engine on one group of each size, against the plain scorer. Each round and size has a source of its own."""
    rates = Rates()
    for _ in range(rounds):
        alone = contestants.prepare(contestants.fresh(1))[:3]
        turns: dict[str, Turn] = {ALONE: partial(score_alone, contestants.plain, alone)}
        for size in sizes:
            group = contestants.prepare(contestants.fresh(1, edits=size))
            turns[f"{size}"] = partial(score_together, contestants.engine, group)
        rates.run(turns)
    return rates


def loads(contestants: Contestants, callers: Sequence[int], at_least: int) -> list[Load]:
    """The service under 1, 2, 4, … callers that send one candidate after the other, each level on fresh groups."""
    results = []
    for count in callers:
        groups = contestants.fresh(ceil(max(count, at_least) / contestants.edits))
        results.append(contestants.callers.score([single for group in groups for single in group.singles], count))
    return results


def load_table(layout: str, results: Sequence[Load]) -> str:
    """Throughput and latency by the number of callers."""
    rows = [
        [one.callers, f"{one.rate:.2f}", f"{median(one.latencies):.2f}", f"{one.percentile(95):.2f}"] for one in results
    ]
    return table([f"{layout}: callers", "candidates/s", "median latency, s", "95th percentile, s"], rows)
