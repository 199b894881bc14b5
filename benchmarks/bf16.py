"""How far bfloat16 moves a score: ``python -m benchmarks.bf16``.

Two questions, for every number of a score. How much does it matter what else is in the batch? In float32 next to
nothing; in bfloat16 a kernel that sums in another order rounds elsewhere. And how far is bfloat16 from float32? Each
candidate is scored alone and in batches of whole groups, in both dtypes, by the engine, and no features are kept, so
that an image is encoded in the same company as its candidate. Runs on a GPU as on a CPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from jrm_service.bench.tables import machine, table
from jrm_service.model.checkpoint import Checkpoint, open_checkpoint
from jrm_service.model.checkpoint_source import BUNDLED
from jrm_service.model.engine import TrieScorer
from jrm_service.model.golden import numbers
from jrm_service.scoring.preparing import CheckpointPreparer
from jrm_service.scoring.token_budget import DEFAULT_TOKENS
from jrm_service.scoring.types import Candidate, Score
from jrm_training.world import World

from .models import SIZES, cached_checkpoint
from .pictures import Pictures

GROUP = 12
GROUPS_OF_A_BATCH = 4
Array = npt.NDArray[np.float64]
Numbers = Mapping[str, Array]
"""Every number of a score by name, [candidates] each."""


@dataclass(frozen=True)
class Comparison:
    """Two ways to score the same candidates."""

    title: str
    ours: Numbers
    theirs: Numbers


def world_groups(preparer: CheckpointPreparer, groups: int) -> list[list[Candidate]]:
    """Groups of the synthetic world that the bundled checkpoint never saw."""
    prepared = []
    for group in World(groups, split="test", edits=GROUP):
        sources = [preparer.image(source) for source in group.sources]
        edits = [preparer.image(edit.image) for edit in group.edits]
        prepared.append([preparer.candidate(sources, edited, group.instruction) for edited in edits])
    return prepared


def photo_groups(preparer: CheckpointPreparer, groups: int, side: int) -> list[list[Candidate]]:
    """Windows of a photograph, and edits of them."""
    pictures = Pictures(side)
    prepared = []
    for _ in range(groups):
        group = pictures.group(GROUP)
        source = preparer.image(group.sources[0])
        edits = [preparer.image(edit) for edit in group.edits]
        prepared.append([preparer.candidate([source], edited, group.instruction) for edited in edits])
    return prepared


def scored(scorer: TrieScorer, batches: Sequence[Sequence[Candidate]]) -> Numbers:
    """All candidates of all batches, in order. Raises RuntimeError when one of them has no finite score."""
    found: list[Mapping[str, float | None]] = []
    for batch in batches:
        for outcome in scorer.score(scorer.collate(batch)).outcomes:
            if not isinstance(outcome, Score) or not outcome.finite:
                raise RuntimeError(f"a candidate has no score: {outcome}")
            found.append(numbers(outcome))
    return {
        name: np.array([one[name] for one in found], float) for name, value in found[0].items() if value is not None
    }


def compare(checkpoint: Checkpoint, groups: Sequence[Sequence[Candidate]], device: str) -> list[Comparison]:
    """Score everything four times."""
    starts = range(0, len(groups), GROUPS_OF_A_BATCH)
    batches = [[one for group in groups[n : n + GROUPS_OF_A_BATCH] for one in group] for n in starts]
    alone = [[one] for group in groups for one in group]
    seen: dict[torch.dtype, tuple[Numbers, Numbers]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        # Rows as long as a GPU's, on a CPU too: it is company that is measured.
        scorer = TrieScorer(checkpoint, device, dtype, row_tokens=DEFAULT_TOKENS, feature_cache_bytes=0)
        seen[dtype] = scored(scorer, batches), scored(scorer, alone)
    (batched32, alone32), (batched16, alone16) = seen.values()
    return [
        Comparison("bfloat16: in a batch, alone", batched16, alone16),
        Comparison("float32: in a batch, alone", batched32, alone32),
        Comparison("in a batch: bfloat16, float32", batched16, batched32),
    ]


def order_kept(ours: Array, theirs: Array, sizes: Sequence[int]) -> float:
    """Share of the pairs within a group that both put in the same order, ties included; 1 without any pair."""
    kept: list[bool] = []
    start = 0
    for size in sizes:
        pairs = combinations(range(start, start + size), 2)
        kept += [bool(np.sign(ours[i] - ours[j]) == np.sign(theirs[i] - theirs[j])) for i, j in pairs]
        start += size
    return sum(kept) / len(kept) if kept else 1.0


def spread(values: Array, sizes: Sequence[int]) -> float:
    """Standard deviation within a group, averaged over groups: what GRPO divides by."""
    ends = np.cumsum(sizes)[:-1]
    return float(np.mean([group.std() for group in np.split(values, ends)]))


def report(comparisons: Sequence[Comparison], sizes: Sequence[int]) -> str:
    """A table for each comparison; all differences are absolute."""
    tables = []
    for one in comparisons:
        rows = []
        for name, ours in one.ours.items():
            theirs = one.theirs[name]
            off = np.abs(ours - theirs)
            figures = [f"{figure:.1e}" for figure in (np.median(off), np.quantile(off, 0.99), off.max())]
            rows.append([name, *figures, f"{spread(theirs, sizes):.2g}", f"{order_kept(ours, theirs, sizes):.2%}"])
        headings = [one.title, "median", "99%", "largest", "spread in a group", "pairs in the same order"]
        tables.append(table(headings, rows))
    return "\n\n".join(tables)


def _whole_groups(candidates: int) -> int:
    return -(-candidates // GROUP)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--checkpoint", type=Path, default=BUNDLED, help="scored on the synthetic world")
    parser.add_argument("--candidates", type=int, default=500, help="of the checkpoint; whole groups are scored")
    parser.add_argument("--random-size", choices=list(SIZES), default="mid", help="a checkpoint with random weights")
    parser.add_argument("--random-candidates", type=int, default=48, help="of that one, on photographs; 0: none")
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    where = machine() if options.device == "cpu" else torch.cuda.get_device_name(options.device)
    print(f"{where}; torch {torch.__version__}")

    checkpoint = open_checkpoint(options.checkpoint)
    groups = world_groups(CheckpointPreparer(checkpoint), _whole_groups(options.candidates))
    _print(checkpoint, groups, options.device)
    if options.random_candidates:
        checkpoint = open_checkpoint(cached_checkpoint(options.random_size, "paper"))
        side = SIZES[options.random_size].side
        groups = photo_groups(CheckpointPreparer(checkpoint), _whole_groups(options.random_candidates), side)
        _print(checkpoint, groups, options.device)


def _print(checkpoint: Checkpoint, groups: Sequence[Sequence[Candidate]], device: str) -> None:
    sizes = [len(group) for group in groups]
    print(f"\n{checkpoint.manifest.name}: {sum(sizes)} candidates, batches of {GROUPS_OF_A_BATCH} groups of {GROUP}\n")
    print(report(compare(checkpoint, groups, device), sizes), flush=True)


if __name__ == "__main__":
    main()
