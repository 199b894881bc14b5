"""An edit is what its quality says, and its label follows."""

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings

from jrm_training.world import SEEN
from jrm_training.world.edits import LABELS, edit
from jrm_training.world.tasks import VERBS, sample_task
from support import worlds


def kept(task) -> set:
    """The shapes that the task is not about."""
    return {shape for n, shape in enumerate(task.scene.shapes) if n != task.target}


def instead(task, scene):
    """What stands there in place of the target or the addition, where all the rest is as it was."""
    assert set(scene.shapes) >= kept(task)
    [shape] = set(scene.shapes) - kept(task)
    return shape


def test_labels_are_the_scores_of_the_paper():
    scores = {"right": 4, "partly_right": 3, "wrong_result": 2, "over_edited": 2, "wrong_object": 1, "unchanged": 1}
    assert scores == LABELS


@given(worlds.tasks, worlds.randoms)
@settings(max_examples=100, deadline=None)
def test_every_label_follows_from_the_quality(task, random):
    for quality, made in worlds.edits_of(task, random).items():
        assert made.quality == quality
        assert made.label == LABELS[quality]


@given(worlds.tasks, worlds.randoms)
@settings(max_examples=100, deadline=None)
def test_right_is_the_goal_and_unchanged_is_the_source(task, random):
    made = worlds.edits_of(task, random)
    assert set(made["right"].scene.shapes) == kept(task) | ({task.goal} - {None})
    assert made["unchanged"].scene == task.scene


@given(worlds.tasks, worlds.randoms)
@settings(max_examples=100, deadline=None)
def test_partly_right_is_between_the_source_and_the_goal(task, random):
    made = edit(task, "partly_right", SEEN, random)
    if made is None:
        return
    shape = instead(task, made.scene)
    if task.verb == "move":
        way, asked = ((end.x - task.old.x, end.y - task.old.y) for end in (shape, task.goal))
        assert 0.08 < np.dot(way, asked) / np.linalg.norm(asked) < 0.14
    elif task.verb == "replace":
        one_wish = {(task.goal.kind, task.old.colour), (task.old.kind, task.goal.colour)}
        assert (shape.kind, shape.colour) in one_wish
        assert (shape.kind, shape.colour) != (task.goal.kind, task.goal.colour)
    else:
        assert shape.half is not None
        assert shape.second == (task.goal.rgb if task.verb == "recolour" else None)


@given(worlds.tasks, worlds.randoms)
@settings(max_examples=100, deadline=None)
def test_a_wrong_result_is_neither_what_was_nor_what_was_asked_for(task, random):
    made = edit(task, "wrong_result", SEEN, random)
    if made is None:
        return
    shape = instead(task, made.scene)
    if task.verb == "move":
        way, asked = ((end.x - task.old.x, end.y - task.old.y) for end in (shape, task.goal))
        assert np.dot(way, asked) <= 0
        assert np.linalg.norm(way) > 0.27
    else:
        assert (shape.x, shape.y) == (task.goal.x, task.goal.y)
        assert (shape.colour == task.goal.colour) != (shape.kind == task.goal.kind)
        assert task.target is None or shape.label != task.old.label


@given(worlds.tasks, worlds.randoms)
@settings(max_examples=100, deadline=None)
def test_over_edited_is_what_was_asked_for_and_one_thing_more(task, random):
    made = edit(task, "over_edited", SEEN, random)
    if made is None:
        return
    right = kept(task) | ({task.goal} - {None})
    assert made.changes[0].after == task.goal
    missing, extra = right - set(made.scene.shapes), set(made.scene.shapes) - right
    assert 1 <= len(missing) + len(extra) <= 2
    assert missing <= kept(task)
    involved = {shape.label for shape in (task.goal, task.target is not None and task.old) if shape}
    assert not {shape.label for shape in extra} & involved  # neither undoes nor repeats the edit


@given(worlds.tasks, worlds.randoms)
@settings(max_examples=100, deadline=None)
def test_the_wrong_object_leaves_the_right_one_alone(task, random):
    made = edit(task, "wrong_object", SEEN, random)
    if made is None:
        return
    [change] = made.changes
    if task.verb == "add":
        assert change.before is None
        assert change.after.kind != task.goal.kind
        assert change.after.colour != task.goal.colour
    else:
        assert task.old in made.scene.shapes
        assert change.before in kept(task)


@given(worlds.tasks, worlds.randoms)
@settings(max_examples=100, deadline=None)
def test_no_edit_looks_like_one_of_another_label(task, random):
    made = worlds.edits_of(task, random)
    drawn = {quality: worlds.pixels(one.scene, 64, 2) for quality, one in made.items()}
    source = worlds.pixels(task.scene, 64, 2)
    for quality, image in drawn.items():
        assert np.array_equal(image, source) == (quality == "unchanged")
        if quality != "right":
            assert np.abs(image - drawn["right"]).max() > 40, quality


@given(worlds.tasks, worlds.randoms)
@settings(max_examples=100, deadline=None)
def test_all_that_changed_lies_in_the_changed_shapes(task, random):
    for quality, made in worlds.edits_of(task, random).items():
        allowed = np.zeros_like(worlds.changed(task.scene, task.scene))
        for change in made.changes:
            for shape in (change.before, change.after):
                if shape is not None:
                    left, top, right, bottom = (round(128 * side) for side in shape.extent())
                    allowed[max(0, top - 1) : bottom + 2, max(0, left - 1) : right + 2] = True
        assert not (worlds.changed(task.scene, made.scene) & ~allowed).any(), quality


@given(worlds.tasks, worlds.randoms)
@settings(max_examples=100, deadline=None)
def test_changes_are_the_difference_of_the_scenes(task, random):
    for made in worlds.edits_of(task, random).values():
        gone = [change.before for change in made.changes if change.before is not None]
        come = [change.after for change in made.changes if change.after is not None]
        assert set(gone) == set(task.scene.shapes) - set(made.scene.shapes)
        assert set(come) == set(made.scene.shapes) - set(task.scene.shapes)
        assert len(made.scene.shapes) == len(task.scene.shapes) - len(gone) + len(come)


@given(worlds.tasks, worlds.randoms)
@settings(max_examples=100, deadline=None)
def test_nothing_held_out_appears(task, random):
    for made in worlds.edits_of(task, random).values():
        assert {(shape.colour, shape.kind) for shape in made.scene.shapes} <= SEEN


@given(worlds.tasks, worlds.randoms)
@settings(max_examples=100, deadline=None)
def test_half_a_triangle_is_never_a_smaller_triangle(task, random):
    made = edit(task, "partly_right", SEEN, random)
    if made is not None:
        [change] = made.changes
        if change.after.kind == "triangle":
            assert change.after.half != "top"
            assert task.verb != "add" or change.after.half == "bottom"


@pytest.mark.parametrize(
    ("verb", "shapes", "quality"),
    [("remove", 1, "wrong_object"), ("recolour", 1, "wrong_object"), ("remove", 3, "wrong_result")],
)
def test_a_task_may_lack_a_quality(verb, shapes, quality):
    assert edit(worlds.task_for(verb, shapes), quality, SEEN, Random(0)) is None


def test_every_verb_has_every_other_quality():
    random = Random(0)
    tasks = [sample_task(random, shapes=(2, 3), palette=SEEN) for _ in range(300)]
    made = {(task.verb, quality) for task in tasks for quality in worlds.edits_of(task, random)}
    assert made == {(verb, quality) for verb in VERBS for quality in LABELS} - {("remove", "wrong_result")}


def test_equal_seeds_give_equal_edits():
    task = worlds.task_for("replace")
    assert worlds.edits_of(task, Random(3)) == worlds.edits_of(task, Random(3))
