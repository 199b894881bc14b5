import math
import pickle

import numpy as np
import pytest

from jrm_client import CandidateError, Dimension, GroupScores, Score
from jrm_client.probability import expected_sigmoid
from jrm_client.results import failed_score


def score(reward: float, std: float | None = 0.5) -> Score:
    return Score(reward, std, {"quality": Dimension(reward * 2, std)}, False, "m", "f")


FAILED = failed_score(CandidateError("broken", code="invalid_image"), ("quality",))
GROUP = GroupScores((score(1.0), score(0.25), FAILED))


def test_rewards_are_a_float32_array_with_nan_for_failures() -> None:
    assert GROUP.rewards.dtype == np.float32
    np.testing.assert_array_equal(GROUP.rewards, np.array([1.0, 0.25, np.nan], np.float32))


def test_dimension_gives_the_means() -> None:
    np.testing.assert_array_equal(GROUP.dimension("quality"), np.array([2.0, 0.5, np.nan], np.float32))


def test_an_unknown_dimension_is_named_with_those_that_exist() -> None:
    with pytest.raises(KeyError, match="no dimension 'qualty'; this checkpoint has quality"):
        GROUP.dimension("qualty")
    with pytest.raises(KeyError, match="qualty"):
        GROUP.win_probability(0, 1, "qualty")


def test_win_probability_is_on_the_reward_or_on_a_dimension() -> None:
    assert GROUP.win_probability(0, 1) == expected_sigmoid(0.75, math.hypot(0.5, 0.5))
    assert GROUP.win_probability(0, 1, "quality") == expected_sigmoid(1.5, math.hypot(0.5, 0.5))


def test_win_probability_without_a_std() -> None:
    group = GroupScores((score(1.0, None), score(0.0, None)))
    assert group.win_probability(0, 1) == pytest.approx(1 / (1 + math.exp(-1)))


def test_a_candidate_against_itself_and_against_a_failure() -> None:
    assert GROUP.win_probability(1, 1) == 0.5
    assert math.isnan(GROUP.win_probability(0, 2))
    assert math.isnan(GROUP.win_probability(2, 2))


def test_a_failed_score_has_no_number_under_any_name() -> None:
    assert math.isnan(FAILED.reward)
    assert FAILED.reward_std is not None
    assert math.isnan(FAILED.reward_std)
    assert FAILED.normalized is not None
    assert math.isnan(FAILED.normalized)
    assert math.isnan(FAILED.dimensions["quality"].mean)
    assert math.isnan(FAILED.dimensions["never seen"].mean)


def test_a_score_has_no_normalized_reward_unless_the_checkpoint_normalizes() -> None:
    assert score(1.0).normalized is None


def test_groups_behave_like_sequences_and_survive_pickling() -> None:
    assert len(GROUP) == 3
    assert [one.reward for one in GROUP][:2] == [1.0, 0.25]
    copy = pickle.loads(pickle.dumps(GROUP))
    assert copy[0] == GROUP[0]
    assert copy[2].error.code == "invalid_image"
    assert math.isnan(copy[2].dimensions["anything"].mean)
