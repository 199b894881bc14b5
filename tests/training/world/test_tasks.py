"""Tasks ask, in proper English, for something that can be done and has not been."""

import re
from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings

from jrm_training.world import HELD_OUT, SEEN
from jrm_training.world.scene import COLOURS, KINDS
from jrm_training.world.tasks import ALL, VERBS, moved, sample_task
from support import worlds

NAMES = re.compile(rf"\b(?:{'|'.join(COLOURS)}) (?:{'|'.join(KINDS)})\b")
WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


def names(task) -> list[str]:
    return [shape.label for shape in task.scene.shapes]


@given(worlds.tasks)
@settings(max_examples=100, deadline=None)
def test_an_instruction_names_the_shape_it_is_about_and_what_should_be(task):
    named = set(NAMES.findall(task.instruction))
    allowed = set() if task.target is None else {task.old.label}
    assert named - allowed <= (set() if task.goal is None else {task.goal.label})
    assert allowed <= named
    if task.verb in ("add", "replace"):
        assert task.goal.label in named
    elif task.verb == "recolour":
        assert task.goal.colour in task.instruction
    elif task.verb == "move":
        assert re.search(rf"\b{task.direction}\b", task.instruction)


@given(worlds.unseen_tasks)
@settings(max_examples=100, deadline=None)
def test_instructions_are_proper_english(task):
    assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|to the (?:up|down)|  |None|[{}]", task.instruction)


@given(worlds.tasks)
@settings(max_examples=100, deadline=None)
def test_no_two_shapes_of_a_source_have_one_name(task):
    assert len(set(names(task))) == len(names(task)) <= 5


@given(worlds.tasks)
@settings(max_examples=100, deadline=None)
def test_the_goal_is_not_there_yet(task):
    if task.verb == "remove":
        assert task.goal is None
    elif task.verb == "move":
        assert task.goal.label == task.old.label
        assert task.goal not in task.scene.shapes
    else:
        assert task.goal.label not in names(task)


@given(worlds.tasks)
@settings(max_examples=100, deadline=None)
def test_a_goal_changes_what_is_asked_and_nothing_else(task):
    if task.verb == "recolour":
        assert (task.goal.kind, task.goal.turn) == (task.old.kind, task.old.turn)
        assert task.goal.colour != task.old.colour
    elif task.verb == "replace":
        assert task.goal.kind != task.old.kind
    if task.verb in ("recolour", "replace"):
        assert (task.goal.x, task.goal.y, task.goal.size) == (task.old.x, task.old.y, task.old.size)


@given(worlds.tasks)
@settings(max_examples=100, deadline=None)
def test_a_move_goes_far_and_straight(task):
    if task.verb == "move":
        way = (task.goal.x - task.old.x, task.goal.y - task.old.y)
        dx, dy = WAYS[task.direction]
        assert way[0] * dy == way[1] * dx == 0
        assert 0.28 - 1e-9 <= way[0] * dx + way[1] * dy <= 0.6 + 1e-9


@given(worlds.tasks)
@settings(max_examples=100, deadline=None)
def test_a_seen_task_has_nothing_held_out(task):
    used = {(shape.colour, shape.kind) for shape in (*task.scene.shapes, task.goal) if shape is not None}
    assert used <= SEEN


@given(worlds.unseen_tasks)
@settings(max_examples=100, deadline=None)
def test_an_unseen_task_is_about_a_held_out_combination(task):
    about = {(shape.colour, shape.kind) for shape in (task.goal, task.target is not None and task.old) if shape}
    assert about & HELD_OUT


def test_what_is_held_out_is_new_only_together():
    assert SEEN | HELD_OUT == ALL
    assert not SEEN & HELD_OUT
    assert {colour for colour, _ in SEEN} == set(COLOURS)
    assert {kind for _, kind in SEEN} == set(KINDS)


def test_every_verb_and_count_is_drawn():
    random = Random(0)
    drawn = [sample_task(random, shapes=(1, 5), palette=SEEN) for _ in range(600)]
    assert min(Counter(task.verb for task in drawn)[verb] for verb in VERBS) > 50
    assert {len(task.scene.shapes) for task in drawn} == {1, 2, 3, 4, 5}


def test_the_order_of_shapes_does_not_give_the_target_away():
    random = Random(0)
    drawn = [sample_task(random, shapes=(3, 3), palette=SEEN) for _ in range(200)]
    assert min(Counter(task.target for task in drawn if task.target is not None)[n] for n in range(3)) > 30


def test_nothing_can_be_moved_where_there_is_no_room():
    task = worlds.task_for("remove", 1)
    assert moved(task.scene, 0, Random(0), reach=(2, 3)) == (None, "")


@pytest.mark.parametrize("verb", VERBS)
def test_equal_seeds_give_equal_tasks(verb):
    assert worlds.task_for(verb) == worlds.task_for(verb)
