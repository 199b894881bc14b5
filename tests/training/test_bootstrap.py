import numpy as np
import pytest

from jrm_training.bootstrap import CalibrationError, MacroShare, Share, estimates, resample


def share(*sums, **options):
    return estimates({"share": Share(np.array(sums, float).reshape(-1, 2))}, **options)["share"]


def test_the_value_is_a_ratio_of_totals():
    found = share((1, 4), (2, 2), (0, 0))
    assert (found.value, found.count, found.groups) == (0.5, 6, 2)


def test_equal_seeds_give_equal_intervals():
    groups = [(k % 3, 3) for k in range(20)]
    assert share(*groups, seed=1) == share(*groups, seed=1)
    assert share(*groups, seed=1) != share(*groups, seed=2)


def test_a_higher_level_gives_a_wider_interval():
    groups = [(k % 4, 3) for k in range(40)]
    narrow, wide = share(*groups, level=0.5), share(*groups, level=0.99)
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """Coins whose bias differs between groups: the flips of a group are not independent."""
    random = np.random.default_rng(0)
    covered = naive = 0
    for seed in range(300):
        bias = random.beta(1.4, 0.6, size=60)  # mean 0.7
        heads = random.binomial(20, bias)
        found = share(*((h, 20) for h in heads), draws=300, seed=seed)
        covered += found.low <= 0.7 <= found.high
        margin = 1.96 * (found.value * (1 - found.value) / 1200) ** 0.5
        naive += abs(found.value - 0.7) <= margin
    assert 0.91 <= covered / 300 <= 0.98
    assert naive / 300 < 0.7  # what counting flips as independent would give


def test_all_right_is_not_certain():
    found = share(*[(5, 5)] * 10)
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(10 / (10 + 1.96**2), abs=1e-3)


def test_all_wrong_is_not_certain():
    found = share(*[(0, 5)] * 10)
    assert (found.value, found.low) == (0.0, 0.0)
    assert found.high == pytest.approx(1.96**2 / (10 + 1.96**2), abs=1e-3)


def test_one_group_says_nothing_about_others():
    found = share((1, 2), (0, 0))
    assert (found.value, found.low, found.high) == (0.5, None, None)


def test_without_a_unit_there_is_no_value():
    assert share((0, 0), (0, 0)).value is None
    assert share().value is None
    assert estimates({}) == {}


def test_resamples_that_lack_a_unit_are_left_out():
    found = share((1, 2), (1, 1), *[(0, 0)] * 8)
    assert 0.5 <= found.low <= found.value <= found.high <= 1


def test_resampling_draws_whole_groups():
    totals = resample(np.array([[1.0, 10.0], [2.0, 20.0]]), 100, seed=0)
    assert set(map(tuple, totals)) == {(2.0, 20.0), (3.0, 30.0), (4.0, 40.0)}


def calibration(predicted, won):
    """One prediction for each group, from one side, in ten bins."""
    bins = np.minimum((predicted * 10).astype(int), 9)
    one_hot = np.eye(10)[bins]
    sums = np.concatenate([one_hot, one_hot * predicted[:, None], one_hot * won[:, None]], axis=1)
    return estimates({"error": CalibrationError(sums)})["error"]


def test_a_calibrated_predictor_may_have_no_error():
    random = np.random.default_rng(0)
    predicted = random.random(400)
    found = calibration(predicted, random.random(400) < predicted)
    assert found.value > 0.01  # noise alone
    assert found.low == 0


def test_an_overconfident_predictor_has_an_error():
    random = np.random.default_rng(0)
    found = calibration(np.full(2000, 0.95), random.random(2000) < 0.75)
    assert 0.16 < found.low < 0.2 < found.high < 0.24


# --- averages of shares -----------------------------------------------------------------------------------------------


def test_an_average_of_shares_counts_each_once():
    # 1 of 1 and 1 of 4: the average is 5/8, whatever the numbers; the third share has no units
    sums = np.array([[1, 1, 0, 0, 0, 0], [0, 0, 1, 2, 0, 0], [0, 0, 0, 2, 0, 0]], float)
    estimate = estimates({"x": MacroShare(sums)}, draws=200)["x"]
    assert (estimate.value, estimate.count, estimate.groups) == (5 / 8, 5, 3)
    assert estimate.low < 5 / 8 < estimate.high


def test_an_average_of_no_shares():
    assert estimates({"x": MacroShare(np.zeros((3, 4)))})["x"].value is None
