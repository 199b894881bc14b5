"""Critiques are valid and say what was done, where, and how well."""

import json
import re
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jrm_training.critique import parse_critique
from jrm_training.world import critique
from jrm_training.world.edits import Change, Edit
from jrm_training.world.flaws import sample
from jrm_training.world.scene import Scene, Shape
from support import worlds

RED = Shape("square", "red", (255, 0, 0), 0.2, 0.2, 0.1)
ORANGE = Shape("triangle", "orange", (255, 140, 0), 0.7, 0.7, 0.1)
BLUE = replace(RED, kind="circle", colour="blue", rgb=(0, 0, 255))
SOURCE = Scene(1, 1, (255, 255, 255), (RED, ORANGE))


@given(worlds.tasks, worlds.randoms)
@settings(max_examples=100, deadline=None)
def test_critiques_are_critiques(task, random):
    for edit in worlds.edits_of(task, random).values():
        read = parse_critique(critique.instruction_following(edit, task.scene), regions=True)
        assert len(read.boxes) == len(edit.changes)
        assert re.findall(r"<\|bbox_(\d+)\|>", read.reasoning) == [str(n) for n in range(len(edit.changes))]


@given(worlds.tasks, worlds.randoms)
@settings(max_examples=100, deadline=None)
def test_a_box_is_where_the_change_is_seen(task, random):
    for edit in worlds.edits_of(task, random).values():
        read = parse_critique(critique.instruction_following(edit, task.scene), regions=True)
        for region, change in zip(read.edit_region, edit.changes, strict=True):
            shape = change.before if change.after is None else change.after
            assert tuple(region.bbox_2d) == task.scene.box(shape)
            assert region.label == shape.label


@given(worlds.tasks, worlds.randoms)
@settings(max_examples=100, deadline=None)
def test_what_was_kept_is_in_both_pictures_and_all_of_it_is_told(task, random):
    for edit in worlds.edits_of(task, random).values():
        reasoning = json.loads(critique.instruction_following(edit, task.scene))["reasoning"]
        told = reasoning.partition("Kept: ")[2].removesuffix(".")
        kept = sorted(shape.label for shape in set(edit.scene.shapes) & set(task.scene.shapes))
        assert sorted(told.split(", ")) == (kept or ["nothing"])


@given(worlds.tasks, st.sampled_from([4, 3, 2, 1]), worlds.randoms)
@settings(max_examples=100, deadline=None)
def test_visual_quality_names_the_flaw_its_strength_and_what_is_seen(task, label, random):
    flaw = sample(label, random)
    reasoning = parse_critique(critique.visual_quality(label, flaw, task.scene), regions=False).reasoning
    verdict, seen = re.fullmatch(r"<\|global\|> (.+)\. Seen: (.+)\.", reasoning).groups()
    strength = {3: "slight", 2: "clear", 1: "severe"}.get(label)
    assert verdict == f"{critique.VERDICTS[label]}: {'clean' if flaw is None else f'{strength} {flaw.kind}'}"
    assert all(shape.label in seen for shape in task.scene.shapes)


@pytest.mark.parametrize(
    ("after", "told"),
    [
        (replace(RED, colour="blue", rgb=(0, 0, 255)), "red square became blue square"),
        (BLUE, "red square became blue circle"),
        (None, "red square is gone"),
        (replace(RED, half="left"), "red square is half gone"),
        (replace(RED, half="left", second=(0, 0, 255)), "red square was half recoloured"),
        (replace(RED, x=0.6), "red square moved right"),
        (replace(RED, x=0.08), "red square moved left a little"),
        (replace(RED, y=0.6), "red square moved down"),
        (replace(RED, y=0.08), "red square moved up a little"),
    ],
)
def test_every_change_is_told(after, told):
    shapes = (ORANGE,) if after is None else (after, ORANGE)
    edit = Edit(replace(SOURCE, shapes=shapes), "right", (Change(RED, after),))
    reasoning = json.loads(critique.instruction_following(edit, SOURCE))["reasoning"]
    assert reasoning == (f"<|global|> very good: done as asked. <|bbox_0|> {told}. <|global|> Kept: orange triangle.")


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        (BLUE, "blue circle was added"),
        (replace(RED, half="top"), "half a red square was added"),
        (replace(ORANGE, half="bottom"), "half an orange triangle was added"),
    ],
)
def test_every_addition_is_told(shape, told):
    edit = Edit(Scene(1, 1, (0, 0, 0), (shape,)), "right", (Change(None, shape),))
    assert f"<|bbox_0|> {told}." in critique.instruction_following(edit, Scene(1, 1, (0, 0, 0), ()))


def test_nothing_changed_has_no_regions():
    text = critique.instruction_following(Edit(SOURCE, "unchanged", ()), SOURCE)
    assert json.loads(text) == {
        "reasoning": "<|global|> very poor: nothing was changed. <|global|> Kept: red square, orange triangle.",
        "edit_region": [],
    }


def test_the_verdict_comes_first():
    for quality, verdict in (("right", "very good"), ("partly_right", "relatively good")):
        text = critique.instruction_following(Edit(SOURCE, quality, ()), SOURCE)
        assert text.startswith(f'{{"reasoning": "<|global|> {verdict}: ')


@pytest.mark.parametrize(
    ("x", "y", "place"), [(0.2, 0.2, "top left"), (0.67, 0.5, "middle centre"), (1.2, 0.9, "bottom right")]
)
def test_a_place_is_one_of_nine(x, y, place):
    scene = Scene(1.34, 1, (0, 0, 0), (replace(RED, x=x, y=y),))
    text = critique.visual_quality(4, None, scene)
    assert json.loads(text)["reasoning"] == f"<|global|> very good: clean. Seen: red square {place}."


def test_an_empty_picture_shows_nothing():
    flaw = sample(1, Random(0), empty=True)
    assert "Seen: nothing." in critique.visual_quality(1, flaw, Scene(1, 1, (0, 0, 0), ()))
