"""Measures how a precision changes the order of rewards: the same candidates in float32 and in each other precision.

GRPO learns from the order and the spacing of rewards within a group, so what counts is how many pairs of a group change
their order, and how far apart they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from jrm_service.model.checkpoint import open_checkpoint
from jrm_service.model.checkpoint_source import BUNDLED, scorer_in
from jrm_service.model.devices import release_memory
from jrm_service.model.preprocessing_version import require_pinned
from jrm_service.scoring.preparing import CheckpointPreparer
from jrm_service.scoring.types import Score

from .pictures import Group, prepare
from .tables import table

PRECISIONS: Final[Mapping[str, Mapping[str, Any]]] = {
    "auto": {"dtype": "auto"},
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "float16": {"dtype": "float16"},
    "fp8": {"dtype": "bfloat16", "quantize": "fp8"},
}
"""By name of a precision, the settings of a server that computes in it; ``auto`` is the server's own choice.

They are flags of ``jrm serve`` and arguments of ``open_source`` alike. A server computes in fp8 on a GPU only.
"""

REFERENCE = "float32"
COMPARED = tuple(name for name in PRECISIONS if name not in ("auto", REFERENCE))
BINS = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Where a bin of |difference of rewards| begins; the last has no end."""

Rewards = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Bin:
    """Pairs of a group with rewards ``low`` to ``high`` apart in the reference, and how many change their order."""

    low: float
    high: float
    pairs: int
    flipped: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """One precision beside the reference, over the pairs within groups.

    A pair is flipped when its order changes: it is reversed, or is a tie in only one of the two. ``tau`` is Kendall's
    tau-b, averaged over the groups in which both have an order; NaN without any. ``largest_flip`` is the largest
    |difference of rewards| in the reference of a pair that is flipped, 0 without one. ``median_off`` and
    ``largest_off`` are how far a reward moves. A candidate without a finite score, which
    float16 may yield, counts only in ``unscored``.
    """

    precision: str
    bins: list[Bin]
    tau: float
    largest_flip: float
    median_off: float
    largest_off: float
    unscored: int

    @property
    def pairs(self) -> int:
        """Pairs within groups."""
        return sum(bin_.pairs for bin_ in self.bins)

    @property
    def flipped(self) -> int:
        """Those that change their order."""
        return sum(bin_.flipped for bin_ in self.bins)


def compare(precision: str, reference: Sequence[Rewards], rewards: Sequence[Rewards]) -> Comparison:
    """``reference`` and ``rewards`` have the rewards of each group, in order; NaN where there is none.

    Raises ValueError when there is nothing to compare.
    """
    kept = [np.isfinite(expected) & np.isfinite(got) for expected, got in zip(reference, rewards, strict=True)]
    unscored = sum(int(np.sum(~both)) for both in kept)
    reference = [expected[both] for expected, both in zip(reference, kept, strict=True)]
    rewards = [got[both] for got, both in zip(rewards, kept, strict=True)]
    if not any(len(expected) > 1 for expected in reference):
        raise ValueError(f"{precision}: no group has two finite rewards to compare")
    gaps, flipped, taus = [], [], []
    for expected, got in zip(reference, rewards, strict=True):
        first, second = np.triu_indices(len(expected), 1)
        before, after = expected[first] - expected[second], got[first] - got[second]
        gaps.append(np.abs(before))
        flipped.append(np.sign(before) != np.sign(after))
        taus.append(_tau(before, after))
    gap, flip = np.concatenate(gaps), np.concatenate(flipped)
    place = np.searchsorted(BINS, gap, side="right") - 1
    bins = [
        Bin(low, high, int(np.sum(place == n)), int(np.sum(flip[place == n])))
        for n, (low, high) in enumerate(zip(BINS, [*BINS[1:], np.inf], strict=True))
    ]
    off = np.abs(np.concatenate(rewards) - np.concatenate(reference))
    ordered = [tau for tau in taus if not np.isnan(tau)]
    return Comparison(
        precision,
        bins,
        tau=float(np.mean(ordered)) if ordered else float("nan"),
        largest_flip=float(gap[flip].max(initial=0.0)),
        median_off=float(np.median(off)),
        largest_off=float(off.max()),
        unscored=unscored,
    )


def _tau(before: Rewards, after: Rewards) -> float:
    """Kendall's tau-b, from the differences of every pair in both; NaN where one of them has no order at all."""
    scale = np.sqrt(float(np.count_nonzero(before)) * np.count_nonzero(after))
    return float(np.sum(np.sign(before) * np.sign(after)) / scale) if scale else float("nan")


def rewards_in(
    precision: str, path: Path | None, device: str, groups: Iterable[Group], *, allow_pipeline_drift: bool = False
) -> list[Rewards]:
    """Rewards of each group, scored together; NaN for a candidate without a finite score. On a CPU, fp8 is simulated.

    Golden scores are not checked, since this is to show deviations beyond their tolerance too. Raises
    CheckpointError, and CandidateError for an image or an instruction that the checkpoint does not take.
    """
    require_pinned(allow_drift=allow_pipeline_drift)
    checkpoint = open_checkpoint(path or BUNDLED)
    backend, preparer = scorer_in(precision, checkpoint, device), CheckpointPreparer(checkpoint)
    rewards = [
        np.array([outcome.reward if isinstance(outcome, Score) and outcome.finite else np.nan for outcome in scored])
        for scored in (backend.score(backend.collate(prepare(preparer, [group]))).outcomes for group in groups)
    ]
    del backend
    release_memory(device)
    return rewards


def compare_all(
    path: Path | None,
    device: str,
    groups: Callable[[], Iterable[Group]],
    step: Callable[[str], None] = lambda _: None,
    *,
    allow_pipeline_drift: bool = False,
) -> list[Comparison]:
    """Every precision of ``COMPARED`` beside the reference. ``groups`` is called once for each.

    ``step`` is called with the precision as each group begins. Raises as ``rewards_in`` and ``compare`` do.
    """

    def with_progress(precision: str) -> Iterable[Group]:
        for group in groups():
            step(precision)
            yield group

    reference, *others = (
        rewards_in(precision, path, device, with_progress(precision), allow_pipeline_drift=allow_pipeline_drift)
        for precision in (REFERENCE, *COMPARED)
    )
    return [compare(name, reference, rewards) for name, rewards in zip(COMPARED, others, strict=True)]


def report(comparisons: Sequence[Comparison]) -> str:
    """Pairs that change their order by bin, and a line of figures for each precision."""
    rows: list[list[object]] = []
    for n, bin_ in enumerate(comparisons[0].bins):
        flips = [comparison.bins[n] for comparison in comparisons]
        pairs = max(flip.pairs for flip in flips)
        rows.append([_range(bin_), f"{pairs:,}", *(_share(flip.flipped, flip.pairs) for flip in flips)])
    pairs = max(comparison.pairs for comparison in comparisons)
    rows.append(["all", f"{pairs:,}", *(_share(c.flipped, c.pairs) for c in comparisons)])
    names = [comparison.precision for comparison in comparisons]
    flips_table = table(["difference of rewards", "pairs", *names], rows)
    summary = table(
        [f"beside {REFERENCE}", *names],
        [
            ["Kendall's tau", *(f"{c.tau:.4f}" for c in comparisons)],
            ["largest flip", *(f"{c.largest_flip:.2g}" for c in comparisons)],
            ["a reward moves by, median", *(f"{c.median_off:.1e}" for c in comparisons)],
            ["a reward moves by, largest", *(f"{c.largest_off:.1e}" for c in comparisons)],
            ["candidates without a score", *(c.unscored for c in comparisons)],
        ],
    )
    return f"{flips_table}\n\n{summary}"


def _range(bin_: Bin) -> str:
    return f"{bin_.low:g} and more" if np.isinf(bin_.high) else f"{bin_.low:g} to {bin_.high:g}"


def _share(flipped: int, pairs: int) -> str:
    return f"{flipped:,} ({flipped / pairs:.2%})" if pairs else "-"
