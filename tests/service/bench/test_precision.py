"""What a precision does to the order of rewards."""

import math

import numpy as np
import pytest

from jrm_service.bench.pictures import Pictures
from jrm_service.bench.precision import BINS, COMPARED, compare, compare_all, report
from support import checkpoints

REFERENCE = [np.array([1.0, 2.0, 2.05]), np.array([5.0, 5.0])]


def flips(comparison):
    return {bin_.low: (bin_.pairs, bin_.flipped) for bin_ in comparison.bins if bin_.pairs}


def test_equal_rewards_flip_nothing():
    comparison = compare("bfloat16", REFERENCE, REFERENCE)
    assert flips(comparison) == {0.0: (1, 0), 0.03: (1, 0), 1.0: (2, 0)}
    assert (comparison.pairs, comparison.flipped, comparison.tau, comparison.largest_flip) == (4, 0, 1.0, 0.0)
    assert comparison.largest_off == 0


def test_a_flip_is_counted_where_the_reference_has_its_difference():
    comparison = compare("bfloat16", REFERENCE, [np.array([1.0, 2.06, 2.04]), REFERENCE[1]])
    assert flips(comparison) == {0.0: (1, 0), 0.03: (1, 1), 1.0: (2, 0)}
    assert comparison.tau == pytest.approx(1 / 3)
    assert comparison.largest_flip == pytest.approx(0.05)
    assert comparison.largest_off == pytest.approx(0.06)


def test_a_tie_in_one_of_the_two_is_another_order():
    assert compare("bfloat16", REFERENCE, [np.array([1.0, 2.0, 2.0]), REFERENCE[1]]).flipped == 1
    assert compare("bfloat16", REFERENCE, [REFERENCE[0], np.array([5.0, 5.1])]).flipped == 1


def test_pairs_are_of_one_group():
    across = [np.array([9.0, 9.1]), np.array([0.0, 0.1])]
    assert compare("bfloat16", across, across[::-1]).flipped == 0


def test_a_candidate_without_a_score_is_in_no_pair():
    comparison = compare("float16", REFERENCE, [np.array([1.0, math.nan, 2.05]), REFERENCE[1]])
    assert (comparison.unscored, comparison.pairs, comparison.flipped) == (1, 2, 0)
    with pytest.raises(ValueError, match="no group has two finite rewards"):
        compare("float16", REFERENCE, [np.full(3, math.nan), np.full(2, math.nan)])


def test_every_precision_is_compared_with_float32(tmp_path):
    path = checkpoints.write(tmp_path, checkpoints.two_passes())
    pictures, steps = Pictures(64), []
    groups = pictures.groups(2, 3)
    comparisons = compare_all(path, "cpu", lambda: groups, steps.append)
    assert [comparison.precision for comparison in comparisons] == list(COMPARED)
    assert all(comparison.pairs == 6 and 0 < comparison.largest_off < 0.3 for comparison in comparisons)
    assert len(steps) == 2 * (1 + len(COMPARED))
    table = report(comparisons)
    assert all(f"{low:g} " in table for low in BINS)
    assert "largest flip" in table
