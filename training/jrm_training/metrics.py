"""How well scores order the edits of a group: accuracy, ties, the pick, calibration. Pure numpy.

========================  ======  ====================================================================================
figure                    unit    what is right
========================  ======  ====================================================================================
``pairwise_accuracy``     pair    of two edits with different labels the better one has the higher score; equal scores
                                  count one half, so that a scorer that says nothing is at chance
``order_of_K``            tuple   of K edits with K different labels all pairs are in order (K = 2, 3, 4)
``best_of_K``             tuple   the best of them has the highest score
``pick_of_group``         group   the edit with the highest score is a best one; groups whose edits all have one label,
                                  or that lack a label or a score, are left out
``tie_share``             pair    (not a quality) pairs with equal labels, among all pairs
``ties_found``            pair    pairs with equal labels that the scores call a tie: win probability in ``TIE_BAND``
``false_ties``            pair    pairs with different labels that the scores call a tie: lower is better
``accuracy_with_ties``    pair    of all pairs, the verdict (better, worse, tie) is the true one
``calibration_error``     pair    expected calibration error of Eq. 4 over pairs with different labels, 10 bins: lower
                                  is better
========================  ======  ====================================================================================

K-way accuracy is strict, as in the paper's benchmarks: equal scores are no order. An edit without a label or without a
score takes part in nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import factorial

import numpy as np
import numpy.typing as npt

from jrm_client.probability import win_probability

from .bootstrap import Array, CalibrationError, Share, Tally

KS = (2, 3, 4)
TIE_BAND = (0.45, 0.55)
BINS = 10

_Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Rated:
    """One output (a dimension, or the reward) for the edits of one group, beside the truth.

    ``labels``, ``means`` and ``stds`` are float64 [G]. A label is NaN where there is none, a mean where the candidate
    failed, a std where the head gives none. Higher labels are better; only their order counts.
    """

    labels: Array
    means: Array
    stds: Array


@dataclass(frozen=True, slots=True)
class Bin:
    """One bin of the reliability diagram: ``count`` win probabilities in [low, high), their mean, and the share won."""

    low: float
    high: float
    count: int
    predicted: float | None
    observed: float | None


def tallies(groups: Sequence[Rated]) -> dict[str, Tally]:
    """Every figure of the table above, as sums over groups for ``bootstrap.estimates``."""
    rows = [_group_sums(group) for group in groups]
    widths = {name: len(sums) for name, sums in _group_sums(Rated(*(np.empty(0) for _ in range(3)))).items()}
    sums = {
        name: np.array([row[name] for row in rows], np.float64).reshape(len(rows), width)
        for name, width in widths.items()
    }
    chances = {"pairwise_accuracy": 0.5, "pick_of_group": _chance_of_pick(sums.pop("best_edits"))}
    chances |= {f"order_of_{k}": 1 / factorial(k) for k in KS} | {f"best_of_{k}": 1 / k for k in KS}
    calibration = CalibrationError(sums.pop("calibration_error"))
    shares: dict[str, Tally] = {name: Share(of_groups, chances.get(name)) for name, of_groups in sums.items()}
    return shares | {"calibration_error": calibration}


def reliability(calibration: CalibrationError) -> list[Bin]:
    """The reliability diagram behind a calibration error. Every pair stands in it twice, once from either side."""
    totals = np.split(calibration.sums.sum(axis=0), 3)
    return [
        Bin(
            low=number / BINS,
            high=(number + 1) / BINS,
            count=round(count),
            predicted=float(predicted / count) if count else None,
            observed=float(observed / count) if count else None,
        )
        for number, (count, predicted, observed) in enumerate(zip(*totals, strict=True))
    ]


def win_probabilities(means: Array, stds: Array) -> Array:
    """P(i is better than j) by Eq. 4, float64 [G, G], from means and stds [G]; a std of NaN means that there is none.

    The function is the client's, so that what is measured is what a trainer reads.
    """
    sigma = [None if np.isnan(std) else float(std) for std in stds]
    win = np.full((len(means), len(means)), 0.5)
    for i in range(len(means)):
        for j in range(i):
            win[i, j] = win_probability(float(means[i]), sigma[i], float(means[j]), sigma[j])
            win[j, i] = 1.0 - win[i, j]
    return win


def _group_sums(group: Rated) -> dict[str, Sequence[float] | Array]:
    """What one group adds to every figure."""
    known = np.isfinite(group.labels) & np.isfinite(group.means)
    labels, means = group.labels[known], group.means[known]
    better = labels[:, None] > labels
    higher = means[:, None] > means
    same_score = means[:, None] == means
    tied = np.triu(labels[:, None] == labels, k=1)
    win = win_probabilities(means, group.stds[known])
    even = (win >= TIE_BAND[0]) & (win <= TIE_BAND[1])
    pairs, ties = float(better.sum()), float(tied.sum())
    right = better & higher
    sums: dict[str, Sequence[float] | Array] = {
        "pairwise_accuracy": (right.sum() + 0.5 * (better & same_score).sum(), pairs),
        "pick_of_group": (0.0, 0.0),
        "best_edits": (0.0, 0.0),
        "tie_share": (ties, pairs + ties),
        "ties_found": ((tied & even).sum(), ties),
        "false_ties": ((better & even).sum(), pairs),
        "accuracy_with_ties": ((right & ~even).sum() + (tied & even).sum(), pairs + ties),
        "calibration_error": calibration_sums(
            np.concatenate([win[better], 1.0 - win[better]]), np.repeat([1.0, 0.0], better.sum())
        ),
    }
    for k in KS:
        tuples = _chains(better, k)
        sums[f"order_of_{k}"] = (_chains(right, k), tuples)
        sums[f"best_of_{k}"] = (_chains_below(better, right, k), tuples)
    if known.all() and pairs:
        best = labels == labels.max()
        sums["pick_of_group"] = (best[means == means.max()].mean(), 1.0)
        sums["best_edits"] = (best.mean(), 1.0)
    return sums


def calibration_sums(predicted: Array, won: Array) -> Array:
    """Predictions, their sum and events in each bin, [3·BINS], for ``CalibrationError``.

    ``predicted``: win probabilities [P], of every pair from both sides; ``won``: the share of times that it came so.
    """
    bins = np.minimum((predicted * BINS).astype(np.int64), BINS - 1)
    return np.concatenate([np.bincount(bins, weights, BINS) for weights in (np.ones(len(bins)), predicted, won)])


def _chains(above: _Mask, length: int) -> float:
    """Number of sequences of ``length`` edits, each above the next; ``above`` [G, G] is transitive.

    Counted, not listed: a group of 64 has 635,376 quadruples.
    """
    step = above.astype(np.float64)
    starting_at = np.ones(len(step))
    for _ in range(length - 1):
        starting_at = step @ starting_at
    return float(starting_at.sum())


def _chains_below(better: _Mask, right: _Mask, length: int) -> float:
    """Number of sequences of ``length`` edits with falling labels whose first edit outscores all others."""
    step, below = better.astype(np.float64), right.astype(np.float64)
    starting_at = below  # [i, j]: sequences under leader i that start at j, of edits that i outscores
    for _ in range(length - 2):
        starting_at = below * (starting_at @ step.T)
    return float(starting_at.sum())


def _chance_of_pick(best_edits: Array) -> float | None:
    """Mean share of best edits over the groups that have a pick: what picking blindly gets."""
    share, groups = best_edits.sum(axis=0)
    return float(share / groups) if groups else None
