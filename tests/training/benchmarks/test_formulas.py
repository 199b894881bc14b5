"""Accuracy with ties: the fast forms against their definitions."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jrm_training.benchmarks.formulas import (
    accuracy_with_ties_on_the_data,
    best_threshold,
    in_order,
    with_threshold,
)

# Few sizes of difference, so that many are equal.
PAIRS = st.lists(st.tuples(st.sampled_from([-1, 0, 1]), st.integers(-4, 4)), min_size=1, max_size=25)


def arrays(pairs):
    labels, differences = zip(*pairs, strict=True)
    return np.array(labels, np.int64), np.array(differences, np.float64)


def test_equal_scores_and_human_ties_are_never_in_order():
    assert in_order(*arrays([(1, 2), (-1, -2), (1, -2), (1, 0), (0, 2), (0, 0)])).tolist() == [True] * 2 + [False] * 4


def test_a_difference_of_the_threshold_is_a_tie():
    right = with_threshold(*arrays([(0, 2), (0, -2), (1, 2), (1, 3), (-1, 3)]), threshold=2.0)
    assert right.tolist() == [True, True, False, True, False]


def test_the_smallest_of_equally_good_thresholds():
    # 0: right, wrong, wrong; 1: right, wrong, wrong; 2: right, right, wrong; 3: the same and a loss
    assert best_threshold(*arrays([(1, 3), (0, 2), (1, -1)])) == 2
    assert best_threshold(*arrays([(1, 3), (-1, -1)])) == 0
    assert best_threshold(np.empty(0, np.int64), np.empty(0)) == 0


@given(PAIRS)
def test_no_threshold_is_better_than_the_best(pairs):
    labels, differences = arrays(pairs)
    best = with_threshold(labels, differences, best_threshold(labels, differences)).mean()
    tried = [with_threshold(labels, differences, threshold).mean() for threshold in (0.0, *np.abs(differences))]
    assert best == max(tried)


@given(PAIRS)
def test_the_walk_of_the_published_code(pairs):
    """Pair after pair, by size of difference, is called a tie; the best accuracy on the way is what it publishes."""
    labels, differences = arrays(pairs)
    order = sorted(range(len(pairs)), key=lambda n: abs(differences[n]))
    seen = []
    for called in range(1, len(pairs) + 1):
        ties = set(order[:called])
        seen.append(sum(labels[n] == 0 if n in ties else labels[n] * differences[n] > 0 for n in range(len(pairs))))
    assert accuracy_with_ties_on_the_data(labels, differences).sum() == max(seen)
