"""A log as curves: windows, what is missing, and where a curriculum goes on."""

import pytest
from studies.curves import curves, stage_ends


def log(step, *, rank=1.0, language=0.0, **accuracy):
    return {"step": step, "rank": rank, "language": language, "gradient_norm": 2.0, "accuracy": accuracy}


def test_a_point_is_the_mean_of_its_window():
    found = curves([log(n, rank=float(n), language=2.0) for n in range(1, 8)], points=3)
    assert (found["steps"], found["window"]) == (7, 3)
    assert found["step"] == found["rank"] == [2.0, 5.0, 7.0]  # the last window has one step left
    assert found["language"] == [2.0] * 3


def test_few_steps_are_points_of_their_own():
    assert curves([log(1), log(2)], points=3)["step"] == [1.0, 2.0]


def test_a_run_without_critiques_has_no_language_loss():
    assert curves([log(1), log(2)])["language"] is None


def test_steps_without_a_pair_are_left_out_of_the_accuracy():
    logs = [log(1, a=0.5), log(2, b=1.0), log(3, b=0.5), log(4, b=0.0)]
    assert curves(logs, points=2)["accuracy"] == {"a": [0.5, None], "b": [1.0, 0.25]}


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="no steps"):
        curves([])


def test_stages_end_where_their_groups_do():
    recipe = {"epochs": 1, "batch": 4, "data": {"curriculum": [{"groups": 8}, {"groups": 6}, {"groups": 20}]}}
    assert stage_ends(recipe) == [2.0, 3.5]
    assert stage_ends(recipe | {"data": {"curriculum": []}}) == []
    assert stage_ends(recipe | {"epochs": 2}) == []
