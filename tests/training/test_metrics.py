"""Every figure against a loop over pairs and tuples, and on cases whose answer is plain."""

from itertools import combinations, permutations
from math import isnan, nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jrm_client.probability import win_probability
from jrm_training.bootstrap import CalibrationError, estimates
from jrm_training.metrics import Rated, reliability, tallies, win_probabilities


def rated(labels, means, std=nan) -> Rated:
    return Rated(np.array(labels, float), np.array(means, float), np.full(len(means), std))


def values(*groups: Rated) -> dict[str, float | None]:
    return {name: estimate.value for name, estimate in estimates(tallies(groups), draws=1).items()}


# Few distinct numbers, so that ties, gaps and failures are common.
edits = st.tuples(
    st.sampled_from([1.0, 2.0, 3.0, 4.0, nan]),
    st.sampled_from([-1.0, -0.1, 0.0, 0.1, 0.5, 2.0, nan]),
    st.sampled_from([0.1, 1.5, nan]),
)
groups = st.lists(st.lists(edits, min_size=1, max_size=7), min_size=1, max_size=3)


def known(group):
    return [edit for edit in group if not isnan(edit[0]) and not isnan(edit[1])]


def win(a, b) -> float:
    return win_probability(a[1], None if isnan(a[2]) else a[2], b[1], None if isnan(b[2]) else b[2])


def ordered_pairs(groups):
    """(better, worse) of all pairs with different labels."""
    return [(a, b) for group in groups for a, b in permutations(known(group), 2) if a[0] > b[0]]


def tied_pairs(groups):
    return [(a, b) for group in groups for a, b in combinations(known(group), 2) if a[0] == b[0]]


def tuples(groups, k):
    """All K-tuples with K different labels, best first."""
    return [
        sorted(chosen, reverse=True)
        for group in groups
        for chosen in combinations(known(group), k)
        if len({edit[0] for edit in chosen}) == k
    ]


def share(right) -> float | None:
    right = list(right)
    return sum(right) / len(right) if right else None


def brute_force(groups) -> dict[str, float | None]:
    pairs, ties = ordered_pairs(groups), tied_pairs(groups)
    expected = {
        "pairwise_accuracy": share((a[1] > b[1]) + 0.5 * (a[1] == b[1]) for a, b in pairs),
        "tie_share": share([True] * len(ties) + [False] * len(pairs)),
        "ties_found": share(0.45 <= win(a, b) <= 0.55 for a, b in ties),
        "false_ties": share(0.45 <= win(a, b) <= 0.55 for a, b in pairs),
        "accuracy_with_ties": share(
            [0.45 <= win(a, b) <= 0.55 for a, b in ties] + [win(a, b) > 0.55 for a, b in pairs]
        ),
    }
    for k in (2, 3, 4):
        chosen = tuples(groups, k)
        expected[f"order_of_{k}"] = share(all(a[1] > b[1] for a, b in combinations(t, 2)) for t in chosen)
        expected[f"best_of_{k}"] = share(all(t[0][1] > other[1] for other in t[1:]) for t in chosen)
    picks = []
    for group in groups:
        labels = {edit[0] for edit in group}
        if len(known(group)) == len(group) and len(labels) > 1:
            top = [edit for edit in group if edit[1] == max(e[1] for e in group)]
            picks.append(sum(edit[0] == max(labels) for edit in top) / len(top))
    return expected | {"pick_of_group": share(picks)}


@settings(deadline=None)
@given(groups)
def test_as_counted_one_by_one(groups):
    found = values(*(Rated(*np.array(group).T) for group in groups))
    for name, expected in brute_force(groups).items():
        assert found[name] == pytest.approx(expected, abs=1e-12), name


@settings(deadline=None)
@given(groups)
def test_calibration_error_as_counted_one_by_one(groups):
    bins = [[] for _ in range(10)]
    for better, worse in ordered_pairs(groups):
        p = win(better, worse)
        bins[min(9, int(p * 10))].append((p, 1))
        bins[min(9, int((1 - p) * 10))].append((1 - p, 0))
    predictions = sum(map(len, bins))
    gaps = sum(abs(sum(won for _, won in one) - sum(p for p, _ in one)) for one in bins)
    found = values(*(Rated(*np.array(group).T) for group in groups))["calibration_error"]
    assert found == (pytest.approx(gaps / predictions, abs=1e-9) if predictions else None)


@settings(deadline=None)
@given(st.permutations(range(6)))
def test_the_order_of_the_edits_does_not_matter(order):
    group = rated([1, 2, 2, 3, 4, nan], [0.3, 0.1, 0.1, 0.9, 0.7, 1.0], 0.5)
    shuffled = Rated(group.labels[order], group.means[order], group.stds[order])
    assert values(shuffled) == pytest.approx(values(group))


def test_a_perfect_order():
    found = values(rated([4, 1, 3, 2], [40, -10, 30, 20]))
    assert all(found[f"{kind}_of_{k}"] == 1 for kind in ("order", "best") for k in (2, 3, 4))
    assert found["pairwise_accuracy"] == found["pick_of_group"] == found["accuracy_with_ties"] == 1
    assert found["calibration_error"] < 0.01


def test_equal_scores_are_at_chance_in_pairs_and_no_order_in_tuples():
    found = values(rated([1, 2, 3], [0, 0, 0]))
    assert found["pairwise_accuracy"] == 0.5
    assert found["order_of_2"] == found["best_of_3"] == 0
    assert found["pick_of_group"] == pytest.approx(1 / 3)


def test_a_group_with_a_failed_edit_has_pairs_but_no_pick():
    found = estimates(tallies([rated([1, 2, 3], [0.0, 1.0, nan])]), draws=1)
    assert (found["pairwise_accuracy"].count, found["pick_of_group"].count) == (1, 0)


def test_a_group_of_equal_labels_has_nothing_to_pick():
    assert values(rated([2, 2], [0.0, 1.0]))["pick_of_group"] is None


def test_chance_of_the_pick_is_the_share_of_best_edits():
    found = estimates(tallies([rated([1, 4, 4, 4], range(4)), rated([1, 2, 3, 4], range(4))]), draws=1)
    assert found["pick_of_group"].chance == 0.5
    assert (found["order_of_3"].chance, found["best_of_4"].chance) == (1 / 6, 1 / 4)


def test_without_groups_there_is_no_figure():
    assert set(values().values()) == {None}


def test_win_probabilities_are_the_clients():
    means, stds = np.array([0.3, -0.2, 1.0]), np.array([0.5, 0.7, nan])
    win = win_probabilities(means, stds)
    assert win[0, 1] == win_probability(0.3, 0.5, -0.2, 0.7)
    assert win[2, 0] == win_probability(1.0, None, 0.3, 0.5)
    np.testing.assert_allclose(win + win.T, 1)


def test_reliability_holds_every_pair_from_both_sides():
    calibration = tallies([rated([2, 1], [1.0, 0.0]), rated([2, 1], [0.0, 1.0])])["calibration_error"]
    assert isinstance(calibration, CalibrationError)
    bins = reliability(calibration)
    filled = {one.low: (one.count, one.predicted, one.observed) for one in bins if one.count}
    assert filled == {0.2: (2, pytest.approx(0.2689414), 0.5), 0.7: (2, pytest.approx(0.7310586), 0.5)}


def test_a_large_group_is_counted_not_listed():
    found = estimates(tallies([rated(range(200), range(200))]), draws=1)["order_of_4"]
    assert (found.value, found.count) == (1.0, 64_684_950)
