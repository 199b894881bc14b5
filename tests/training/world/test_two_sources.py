"""The task of two source images: what is asked, what edits are made of it, and that other groups stay as they are."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jrm_training.critique import parse_critique
from jrm_training.world import HELD_OUT, SEEN, World, edits, two_sources
from jrm_training.world.tasks import ALL

seeds = st.integers(0, 10_000)


def task_of(seed: int, featured=None):
    palette = SEEN if featured is None else ALL
    return two_sources.sample_task(Random(seed), shapes=(1, 4), palette=palette, featured=featured)


def looks(shape):
    return shape.colour, shape.kind


@given(seeds)
@settings(max_examples=40, deadline=None)
def test_a_shape_of_the_second_image_belongs_beside_one_of_the_first(seed):
    task = task_of(seed)
    assert task.verb == "bring"
    assert looks(task.goal) in {looks(shape) for shape in task.second.shapes}
    assert looks(task.goal) not in {looks(shape) for shape in task.scene.shapes}
    assert task.anchor in task.scene.shapes
    nearest = min(task.scene.shapes, key=lambda shape: two_sources.gap(task.goal, shape))
    assert nearest is task.anchor
    assert two_sources.gap(task.goal, task.anchor) < two_sources.FAR
    assert task.scene.has_room(task.goal.x, task.goal.y, task.goal.size)
    assert task.goal.kind in task.instruction
    assert task.anchor.kind in task.instruction


@given(seeds)
@settings(max_examples=40, deadline=None)
def test_what_is_named_by_its_kind_alone_is_the_only_one_of_its_kind(seed):
    task = task_of(seed)
    for shape, scene in ((task.goal, task.second), (task.anchor, task.scene)):
        if shape.label not in task.instruction:
            assert sum(other.kind == shape.kind for other in scene.shapes) == 1


def test_the_colour_has_to_be_seen_in_the_second_image():
    tasks = [task_of(seed) for seed in range(60)]
    unnamed = [task for task in tasks if task.goal.label not in task.instruction]
    assert len(unnamed) > 15
    assert len({task.goal.colour for task in unnamed}) > 3


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_what_is_held_out_is_what_an_unseen_task_brings(seed):
    assert looks(task_of(seed, HELD_OUT).goal) in HELD_OUT
    assert not {looks(shape) for shape in (*task_of(seed).scene.shapes, *task_of(seed).second.shapes)} & HELD_OUT


@given(seeds)
@settings(max_examples=40, deadline=None)
def test_edits_are_of_the_quality_that_they_are_labelled_with(seed):
    task, random = task_of(seed), Random(seed)
    made = {quality: edits.edit(task, quality, SEEN, random) for quality in edits.LABELS}
    assert made["right"].scene.shapes[-1] == task.goal
    assert made["unchanged"].scene == task.scene
    if (half := made["partly_right"]) is not None:
        added = half.changes[0].after
        assert looks(added) == looks(task.goal)
        assert added.half is not None or two_sources.gap(added, task.anchor) >= two_sources.FAR
    wrong = made["wrong_result"].changes[0].after
    assert (wrong.colour == task.goal.colour) != (wrong.kind == task.goal.kind)
    other = made["wrong_object"].changes[0].after
    assert other.colour != task.goal.colour
    assert other.kind != task.goal.kind
    if (more := made["over_edited"]) is not None:
        assert more.changes[0].after == task.goal
        assert len(more.changes) == 2


def test_both_kinds_of_a_half_right_edit_are_made():
    changes = [edits.edit(task_of(seed), "partly_right", SEEN, Random(seed)) for seed in range(40)]
    halves = {edit.changes[0].after.half is not None for edit in changes if edit is not None}
    assert halves == {True, False}


@pytest.mark.parametrize("split", ["train", "test", "unseen"])
def test_a_world_of_two_sources(split):
    for group in World(4, seed=3, split=split, edits=6, two_sources=1.0):
        assert len(group.sources) == 2
        assert {edit.image.size for edit in group.edits} == {group.sources[0].size}
        assert {edit.labels["instruction_following"] for edit in group.edits} >= {1, 2, 4}  # a crowded scene has no 3
        for edit in group.edits:
            parse_critique(edit.critiques["instruction_following"], regions=True)


def test_the_other_groups_are_those_of_the_world_without():
    without, half = World(40, seed=5, edits=2), World(40, seed=5, edits=2, two_sources=0.5)
    two = [len(group.sources) == 2 for group in half]
    assert 10 < sum(two) < 30
    assert all(a == b for a, b, differs in zip(without, half, two, strict=True) if not differs)
    assert all(len(group.sources) == 1 for group in without)


def test_a_share_is_between_0_and_1():
    with pytest.raises(ValueError, match="two_sources is 2"):
        World(1, two_sources=2)
