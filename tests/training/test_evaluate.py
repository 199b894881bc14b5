"""Scoring a data set once, and what the report says of it."""

import json
from math import nan

import pytest
from PIL import Image

from jrm_service.scoring.types import Dimension, Score
from jrm_training.data import Edit, Group
from jrm_training.evaluate import make_report, rated, rated_reward, score_groups
from jrm_training.evaluate_report import table, to_json
from jrm_training.evaluate_results import EvaluationError, Failed, ResultsFile
from jrm_training.evaluate_scorers import FakeScorer, Pooling

DIMENSIONS = ("a", "b")
DARK = Image.new("RGB", (8, 8))


def group(number, *labels, **options) -> Group:
    """Edits whose gray level is their place in the group, with labels for both dimensions."""
    edits = tuple(Edit(Image.new("RGB", (8, 8), (n, n, n)), dict(labels)) for n, labels in enumerate(labels))
    return Group(DARK, f"edit {number}", edits, **options)


def both(a, b=1):
    return {"a": a, "b": b}


def by_gray(group):
    """Brighter edits score higher; an edit of gray level 9 fails."""
    levels = [edit.image.getpixel((0, 0))[0] for edit in group.edits]
    return [
        Failed("internal", "it broke")
        if level == 9
        else Score(level / 2, 0.5, {"a": Dimension(float(level), 0.5), "b": Dimension(0.0, None)})
        for level in levels
    ]


def scorer(judge=by_gray, **options) -> FakeScorer:
    return FakeScorer(judge, dimensions=DIMENSIONS, **options)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "scores.jsonl"


def results(out, fingerprint="fake") -> ResultsFile:
    return ResultsFile(out, "fake", fingerprint)


GROUPS = [group(n, both(1), both(2), both(3)) for n in range(10)]


# --- scoring ----------------------------------------------------------------------------------------------------------


def test_every_group_is_scored_once_and_in_order(out):
    fake, seen = scorer(), []
    judged = score_groups(GROUPS, fake, results(out), lambda done, total: seen.append((done, total)))
    assert sorted(fake.scored) == sorted(one.instruction for one in GROUPS)
    assert [one.outcomes for one in judged] == [tuple(by_gray(one)) for one in GROUPS]
    assert seen == [(n, 10) for n in range(11)]


def test_equal_inputs_are_scored_once(out):
    twice = [group(0, both(1), both(2)), group(0, both(2), both(1)), GROUPS[1], group(0, both(1), both(2))]
    fake = scorer()
    first, second, other, third = score_groups(twice, fake, results(out))
    assert fake.scored == ["edit 0", "edit 1"]
    assert first.outcomes == second.outcomes == third.outcomes != other.outcomes
    assert (first.ranking["a"], second.ranking["a"]) == ((1, 2), (2, 1))
    assert len(out.read_text().splitlines()) == 4
    again = scorer()
    assert score_groups(twice, again, results(out)) == [first, second, other, third]
    assert again.scored == []


def test_what_was_scored_before_serves_its_repetitions(out):
    score_groups(GROUPS[:1], scorer(), results(out))
    again = scorer()
    score_groups([GROUPS[0], GROUPS[0]], again, results(out))
    assert again.scored == []


def test_a_second_run_scores_nothing(out):
    first = score_groups(GROUPS, scorer(), results(out))
    again = scorer()
    assert score_groups(GROUPS, again, results(out)) == first
    assert again.scored == []


def test_after_a_crash_only_the_rest_is_scored(out):
    first = score_groups(GROUPS, scorer(), results(out))
    whole = out.read_bytes()
    out.write_bytes(b"".join(whole.splitlines(keepends=True)[:6]) + b'{"index": 6, "inp')
    again = scorer()
    assert score_groups(GROUPS, again, results(out)) == first
    assert again.scored == [f"edit {n}" for n in range(6, 10)]
    assert out.read_bytes() == whole


def test_what_raises_ends_the_run_and_keeps_what_it_had(out):
    def until_five(one):
        if one.instruction == "edit 5":
            raise ConnectionError("gone")
        return by_gray(one)

    with pytest.raises(ConnectionError):
        score_groups(GROUPS, scorer(until_five), results(out))
    again = scorer()
    score_groups(GROUPS, again, results(out))
    assert "edit 4" not in again.scored
    assert "edit 5" in again.scored


def test_a_group_with_a_failure_is_tried_again(out):
    score_groups(GROUPS[:2], scorer(lambda one: [Failed("internal", "busy")] * 3), results(out))
    again = scorer()
    score_groups(GROUPS[:2], again, results(out))
    assert again.scored == ["edit 0", "edit 1"]


def test_corrected_labels_need_no_scores(out):
    score_groups(GROUPS[:1], scorer(), results(out))
    again = scorer()
    (judged,) = score_groups([group(0, both(3), both(2), both(1))], again, results(out))
    assert again.scored == []
    assert judged.ranking["a"] == (3, 2, 1)


def test_other_data_is_refused(out):
    score_groups(GROUPS[:2], scorer(), results(out))
    with pytest.raises(EvaluationError, match="group 0"):
        score_groups(GROUPS[1::-1], scorer(), results(out))


def test_a_scorer_that_loses_an_edit_is_not_trusted(out):
    with pytest.raises(RuntimeError, match="2 outcomes for the 3 edits"):
        score_groups(GROUPS, scorer(lambda one: by_gray(one)[:2]), results(out))
    assert not out.exists()


# --- labels -----------------------------------------------------------------------------------------------------------


def judge(one, out, **options):
    (judged,) = score_groups([one], scorer(**options), results(out))
    return judged


def labels_of_reward(one, out, pooling) -> list[float]:
    return rated_reward(judge(one, out), pooling).labels.tolist()


def test_the_label_of_the_reward_is_pooled_as_the_reward_is(out):
    one = group(0, both(1, 4), both(3, 2))
    assert labels_of_reward(one, out, Pooling("mean", {"a": 3.0, "b": 1.0})) == [1.75, 2.75]
    assert labels_of_reward(one, out, Pooling("min", {"a": 1.0, "b": 1.0})) == [1, 2]


def test_equal_pooled_labels_are_equal_to_the_last_bit(out):
    pooling = Pooling("mean", {"a": 0.1, "b": 0.2})
    first, second = labels_of_reward(group(0, both(1, 4), both(3, 3)), out, pooling)
    assert first == second


def test_a_missing_label_is_no_label_of_the_reward(out):
    first, second = labels_of_reward(group(0, {"a": 1}, both(2, 2)), out, Pooling("mean", {"a": 1.0, "b": 1.0}))
    assert (str(first), second) == (str(nan), 2)


def test_a_preference_ranks_its_dimension_and_cannot_be_pooled(out):
    judged = judge(group(0, both(1), both(4), preferences={"a": "first"}), out)
    assert rated(judged, "a").labels.tolist() == [1, 0]
    assert str(rated_reward(judged, Pooling("mean", {"a": 1.0, "b": 1.0})).labels.tolist()) == "[nan, nan]"
    assert rated_reward(judged, Pooling("mean", {"a": 1.0})).labels.tolist() == [1, 0]


def test_a_failed_edit_has_no_number(out):
    ten = group(0, *(both(n) for n in range(10)))
    judged = judge(ten, out)
    assert str(rated(judged, "a").means[9]) == "nan"
    assert str(rated_reward(judged, Pooling("mean", {"a": 1.0})).means[9]) == "nan"


# --- the report -------------------------------------------------------------------------------------------------------


def report(groups, out, **options):
    fake = scorer()
    return make_report(score_groups(groups, fake, results(out)), fake, **options)


def test_figures_of_each_dimension_and_of_the_reward(out):
    made = report(GROUPS, out)
    assert list(made.dimensions) == ["a", "b"]
    assert made.dimensions["a"].figures["pairwise_accuracy"].value == 1
    assert made.dimensions["b"].figures["pairwise_accuracy"].value is None
    assert made.dimensions["b"].figures["tie_share"].value == 1
    assert made.reward.figures["pick_of_group"].count == 10
    assert (made.groups, made.edits, made.dimensions["a"].labelled) == (10, 30, 30)


def test_failures_are_counted_by_code_and_in_no_figure(out):
    made = report([group(n, *(both(k) for k in range(10))) for n in range(3)], out)
    assert made.failed == {"internal": 3}
    assert made.dimensions["a"].figures["pairwise_accuracy"].count == 3 * 36


def test_reports_of_the_same_scores_are_equal(out):
    assert report(GROUPS, out) == report(GROUPS, out)


def test_generated_critiques_are_judged(out):
    written = [[{"a": '{"reasoning": "good"}'}, {"a": "{"}, {}]] + [[]] * 9
    figures = report(GROUPS, out, critiques=written).critiques
    assert figures["a"]["critique_valid"].value == 0.5
    assert figures["b"]["critique_valid"].value is None


def test_json_holds_every_figure_and_no_nan(out):
    made = report(GROUPS, out)
    value = json.loads(json.dumps(to_json(made), allow_nan=False))
    assert value["dimensions"]["a"]["figures"]["order_of_3"]["value"] == 1
    assert value["dimensions"]["b"]["figures"]["order_of_3"]["value"] is None
    assert value["failed"] == {"count": 0, "codes": {}}
    assert set(value["reward"]["figures"]) == set(made.reward.figures)


def test_the_table_has_a_row_for_every_figure(out):
    made = report(GROUPS, out)
    measured = sum(
        any(output.figures[name].value is not None for output in (*made.dimensions.values(), made.reward))
        for name in made.reward.figures
    )
    assert table(made).row_count == measured + 4
