"""The difference of two shares over the same groups."""

import numpy as np
import pytest
from studies.gain import gain

from jrm_training.bootstrap import Share, estimates


def share(right, units):
    return Share(np.stack([np.array(right, float), np.array(units, float)], axis=1))


def test_the_gain_is_the_difference_of_the_shares():
    found = gain(share([3, 4, 0], [4, 4, 0]), share([1, 2, 1], [4, 4, 2]))
    assert found.value == pytest.approx(7 / 8 - 4 / 10)
    assert (found.count, found.groups) == (8, 2)


def test_groups_that_are_hard_for_both_do_not_widen_the_interval():
    random = np.random.default_rng(0)
    theirs = random.integers(0, 9, 40)
    ours = theirs + random.integers(0, 2, 40)
    one, other = share(ours, [10] * 40), share(theirs, [10] * 40)
    found = gain(one, other)
    assert 0 < found.low < found.value < found.high
    alone = estimates({"share": one})["share"]
    assert found.high - found.low < (alone.high - alone.low) / 3


def test_the_interval_covers_a_true_gain_as_often_as_it_says():
    random = np.random.default_rng(1)
    covered = 0
    for seed in range(100):
        ours, theirs = random.binomial(10, 0.8, 60), random.binomial(10, 0.7, 60)
        found = gain(share(ours, [10] * 60), share(theirs, [10] * 60), draws=100, seed=seed)
        covered += found.low <= 0.1 <= found.high
    assert 88 <= covered <= 99


def test_what_does_not_vary_has_no_interval():
    found = gain(share([4, 4], [4, 4]), share([2, 2], [4, 4]))
    assert (found.value, found.low, found.high) == (0.5, None, None)


def test_nothing_to_compare_has_no_value():
    assert gain(share([1], [2]), share([0], [0])).value is None


def test_equal_seeds_give_equal_intervals():
    one, other = share([3, 1, 4], [4, 4, 4]), share([1, 2, 2], [4, 4, 4])
    assert gain(one, other, seed=3) == gain(one, other, seed=3)
