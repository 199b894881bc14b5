"""Verdicts: read from critiques, beside labels and scores."""

import json
from math import nan

import pytest
from studies.verdicts import verdict, verdict_tallies

from jrm_service.scoring.types import Dimension, Score
from jrm_training.bootstrap import estimates
from jrm_training.evaluate import ScoredGroup
from jrm_training.world import World

WORDS = {4: "very good", 3: "relatively good", 2: "relatively poor", 1: "very poor"}


def text(label):
    return json.dumps({"reasoning": f"<|global|> {WORDS[label]}: because."})


def judged(labels, means):
    outcomes = tuple(Score(mean, None, {"a": Dimension(mean, None)}) for mean in means)
    return ScoredGroup({"a": tuple(labels)}, frozenset(), ({},) * len(labels), outcomes)


def figures(groups, texts):
    of = [[{} if one is None else {"a": one} for one in group] for group in texts]
    return estimates(verdict_tallies(groups, of, "a", False))


@pytest.mark.parametrize(("dimension", "regions"), [("instruction_following", True), ("visual_quality", False)])
def test_the_worlds_own_critiques_open_with_the_label(dimension, regions):
    edits = [edit for group in World(10, edits=6) for edit in group.edits]
    assert {edit.labels[dimension] for edit in edits} == {1, 2, 3, 4}
    assert all(verdict(edit.critiques[dimension], regions) == edit.labels[dimension] for edit in edits)


@pytest.mark.parametrize(
    "written",
    [
        "very good: clean.",
        '{"reasoning": "<|global|> very goodish: clean."}',
        '{"reasoning": "Seen: a circle. <|global|> very good: clean."}',
        '{"reasoning": "<|global|> very good: clean."',
        '{"reasoning": "<|global|> very good: clean.", "edit_region": []}',
    ],
)
def test_other_words_and_other_json_are_no_verdict(written):
    assert verdict(written, False) is None


def test_a_verdict_is_right_if_it_is_the_label():
    found = figures([judged((4, 3, 2), (0, 0, 0))], [(text(4), text(2), "gibberish")])["verdict_right"]
    assert (found.value, found.count) == (pytest.approx(1 / 3), 3)


def test_what_has_no_critique_or_no_label_is_not_counted():
    groups = [judged((4, nan, 2), (0, 0, 0)), judged((1, 2), (0, 0))]
    found = figures(groups, [(text(4), text(2), None), ()])["verdict_right"]
    assert (found.value, found.count, found.groups) == (1.0, 1, 1)


def test_verdicts_are_judged_as_scores_are():
    found = figures([judged((4, 3, 2, 1), (0, 0, 0, 0))], [(text(3), text(3), text(1), "gibberish")])
    assert found["verdict_accuracy"].value == pytest.approx((0.5 + 1 + 1) / 3)  # one tie, and the last in no pair


def test_the_heads_agree_where_the_better_verdict_has_the_higher_score():
    found = figures([judged((1, 1, 1), (3.0, 2.0, 2.5))], [(text(4), text(3), text(1))])["verdict_agreement"]
    assert (found.value, found.count) == (pytest.approx(2 / 3), 3)
