"""Sigma beside people who disagree: figures of scores whose sigma is right, wrong, or the same everywhere."""

import math

import numpy as np
import pytest
from studies.annotators import annotator_tallies

from jrm_service.scoring.types import Dimension, Score
from jrm_training.bootstrap import estimates
from jrm_training.evaluate import ScoredGroup

SCALE = 10.0
"""Of rewards against labels: the sigmoid of Eq. 4 adds an error of its own, which is small beside these."""


def world(groups=40, edits=6, annotators=200, seed=0):
    """Labels and doubts [groups, edits], and what annotators read [groups, annotators, edits]."""
    random = np.random.default_rng(seed)
    labels = random.integers(1, 5, (groups, edits)).astype(float)
    doubts = random.choice([0.3, 0.6, 1.2], (groups, edits))
    read = labels[:, None] + doubts[:, None] * random.normal(size=(groups, annotators, edits))
    return labels, doubts, read


def figures(labels, stds, read):
    judged = [
        ScoredGroup(
            {"a": tuple(of)},
            frozenset(),
            ({},) * len(of),
            tuple(Score(m, None, {"a": Dimension(m, s)}) for m, s in zip(SCALE * of, std, strict=True)),
        )
        for of, std in zip(labels, stds, strict=True)
    ]
    return estimates(annotator_tallies(judged, list(read), "a"))


def test_a_sigma_that_is_right_is_calibrated_and_saves():
    labels, doubts, read = world()
    found = figures(labels, SCALE * doubts, read)
    assert found["std_rank_correlation"].value > 0.9
    assert found["vote_calibration_error"].value < 0.02
    assert found["saved_by_std"].low > 0
    assert found["vote_loss"].count == 40 * 15


def test_a_sigma_in_the_wrong_places_costs():
    labels, doubts, read = world()
    wrong = np.random.default_rng(1).permutation(doubts.flatten()).reshape(doubts.shape)
    found = figures(labels, SCALE * wrong, read)
    assert abs(found["std_rank_correlation"].value) < 0.2
    assert found["saved_by_std"].high < 0


def test_being_sure_of_everything_is_not_calibrated():
    labels, doubts, read = world()
    sure, right = figures(labels, np.full_like(doubts, 1e-6), read), figures(labels, SCALE * doubts, read)
    assert sure["std_rank_correlation"].value is None  # all are equal
    assert sure["vote_calibration_error"].value > 0.05 > right["vote_calibration_error"].value
    assert sure["vote_loss"].value > 2 * right["vote_loss"].value


def test_the_loss_is_eq_5_of_each_vote():
    read = np.array([[[2.0, 1.0], [2.0, 1.0], [1.0, 2.0], [1.0, 1.0]]])  # 2½ of 4 for the first
    found = figures(np.array([[0.1, 0.0]]), np.array([[0.0, 0.0]]), read)
    first = 1 / (1 + math.exp(-SCALE * 0.1))
    assert found["vote_loss"].value == pytest.approx(-(2.5 * math.log(first) + 1.5 * math.log(1 - first)) / 4)
    assert found["vote_calibration_error"].value == pytest.approx(first - 2.5 / 4)


def test_a_dimension_without_a_std_has_no_figures():
    scored = ScoredGroup({"a": (1.0, 2.0)}, frozenset(), ({}, {}), (Score(0.0, None, {"a": Dimension(0.0, None)}),) * 2)
    assert annotator_tallies([scored], [np.array([[1.0, 2.0]])], "a") == {}
