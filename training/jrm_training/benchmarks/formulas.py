"""Accuracy of score differences against human verdicts with ties. Pure numpy.

A verdict is 1, 0 or -1: the first edit is better, neither, the second. A difference is the score of the first edit
minus that of the second, and is called a tie where its size is at most a threshold (Deutsch et al., arXiv 2305.14324).
Every function takes verdicts [N] and finite differences [N].
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from jrm_training.bootstrap import Array

Labels = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def in_order(labels: Labels, differences: Array) -> Mask:
    """The better edit has the higher score. Never so for a human tie or for equal scores."""
    return labels * differences > 0


def with_threshold(labels: Labels, differences: Array, threshold: float) -> Mask:
    """The verdict (first, second, tie) is the human one, differences of up to ``threshold`` being called ties."""
    tie = np.abs(differences) <= threshold
    return np.where(labels == 0, tie, ~tie & in_order(labels, differences))


def best_threshold(labels: Labels, differences: Array) -> float:
    """The smallest threshold that gives the highest accuracy: 0, or the size of one of the differences.

    This is the rule of EditReward's ``eval_bench.py`` for its own benchmark. On the pairs that it was chosen on, the
    accuracy that belongs to it flatters. Without pairs it is 0.
    """
    sizes = np.abs(differences)
    order = np.argsort(sizes, kind="stable")
    ordered = sizes[order]
    # Pairs at or below a threshold count if people call them ties, pairs above it if they are in order.
    gains = np.where(labels == 0, 1, -in_order(labels, differences).astype(np.int64))[order]
    right = in_order(labels, differences).sum() + np.concatenate([[0], np.cumsum(gains)])
    thresholds = np.unique(np.concatenate([[0.0], ordered]))
    accuracy = right[np.searchsorted(ordered, thresholds, side="right")]
    return float(thresholds[np.argmax(accuracy)])


def accuracy_with_ties_on_the_data(labels: Labels, differences: Array) -> Mask:
    """Which pairs are right in EditReward's ``calc_accuracy_with_ties``, which chooses its threshold on these pairs.

    That code walks through the pairs by size of difference, calls each a tie in turn, and keeps the best accuracy it
    sees on the way; it sees one after every single pair, also between two pairs of equal size, and none before the
    first.
    """
    order = np.argsort(np.abs(differences), kind="stable")
    right = in_order(labels, differences)
    if not len(order):
        return right
    gains = (labels == 0).astype(np.int64) - right
    called_ties = int(np.argmax(np.cumsum(gains[order]))) + 1
    ties = np.zeros(len(labels), bool)
    ties[order[:called_ties]] = True
    return np.where(ties, labels == 0, right)


def share_sums(right: Mask, counted: Mask, clusters: Labels, count: int) -> Array:
    """Sums for ``bootstrap.Share``, float64 [clusters, 2]: right ones and counted ones, of those that are counted."""
    above = np.bincount(clusters, (right & counted).astype(np.float64), count)
    return np.stack([above, np.bincount(clusters, counted.astype(np.float64), count)], axis=1)
