"""What a backend's answer means for each candidate."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jrm_service.errors import InternalError, InvalidImage, NonFiniteScore
from jrm_service.scoring.backend import BatchResult
from jrm_service.scoring.outcomes import Outcome, checked_results, shares
from jrm_service.scoring.types import Dimension, Score

GOOD = Score(0.5, 0.1, {"visual_quality": Dimension(0.5, 0.1)})


def test_scores_and_typed_errors_pass_through() -> None:
    error = InvalidImage("truncated PNG")
    assert checked_results(BatchResult([GOOD, error], 7), 2) == [GOOD, error]


@pytest.mark.parametrize(
    "bad",
    [
        Score(math.nan, 0.1, {"visual_quality": Dimension(0.5, 0.1)}),
        Score(0.5, math.inf, {"visual_quality": Dimension(0.5, 0.1)}),
        Score(0.5, None, {"visual_quality": Dimension(-math.inf, None)}),
        Score(0.5, 0.1, {"visual_quality": Dimension(0.5, math.nan)}),
    ],
)
def test_a_number_that_is_not_finite_fails_its_candidate_alone(bad: Score) -> None:
    first, second, third = checked_results(BatchResult([GOOD, bad, GOOD], 7), 3)
    assert isinstance(second, NonFiniteScore)
    assert first is third is GOOD


@pytest.mark.parametrize("count", [1, 3])
def test_a_wrong_number_of_outcomes_fails_the_batch(count: int) -> None:
    results = checked_results(BatchResult([GOOD, GOOD], 7), count)
    assert len(results) == count
    assert all(isinstance(result, InternalError) for result in results)


def test_something_that_is_no_outcome_fails_its_candidate() -> None:
    first, second = checked_results(BatchResult([0.0, GOOD], 7), 2)  # type: ignore[list-item]
    assert isinstance(first, InternalError)
    assert second is GOOD


def test_an_outcome_is_counted_as_ok_or_by_its_code() -> None:
    assert [Outcome(GOOD).label, Outcome(NonFiniteScore("")).label] == ["ok", "non_finite_score"]


def test_shares_follow_the_weights() -> None:
    assert shares(100, [1, 3]) == [25, 75]


@given(st.integers(0, 10**6), st.lists(st.integers(0, 10**4), min_size=1))
def test_shares_are_whole_and_add_up(total: int, weights: list[int]) -> None:
    parts = shares(total, weights)
    assert sum(parts) == total
    assert all(
        abs(part - total * weight / sum(weights)) <= 1 if sum(weights) else part >= 0
        for part, weight in zip(parts, weights, strict=True)
    )
