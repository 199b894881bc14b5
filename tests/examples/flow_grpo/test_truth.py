"""What is read off a picture is what was drawn: the measure that the experiment is judged by."""

from dataclasses import replace
from random import Random

import numpy as np
import pytest

from examples.flow_grpo import tasks, truth
from jrm_training.world import edits, flaws
from jrm_training.world.scene import draw
from jrm_training.world.tasks import SEEN

TASKS = [tasks.task("tests", number) for number in range(100)]


def picture(scene):
    return np.asarray(draw(scene, tasks.SIDE, 2))


def labels(quality):
    """(the world's label, the label that is read off) for an edit of this quality of each task."""
    random = Random(quality)
    made = [(task, edits.edit(task, quality, SEEN, random)) for task in TASKS]
    return [(one.label, truth.following(task, picture(one.scene))) for task, one in made if one is not None]


@pytest.mark.parametrize("quality", ["right", "partly_right", "over_edited", "wrong_object", "unchanged"])
def test_following_is_the_label_that_the_world_gives(quality):
    pairs = labels(quality)
    assert len(pairs) > 40
    wrong = [pair for pair in pairs if pair[0] != pair[1]]
    assert len(wrong) <= 0.02 * len(pairs), wrong


def test_a_wrong_result_is_never_right_and_mostly_read_as_one():
    """Of a wrong kind in the right colour nobody can say whether it is a wrong result or half of what was asked for."""
    found = [read for _, read in labels("wrong_result")]
    assert set(found) <= {2, 3}
    assert np.mean(np.array(found) == 2) > 0.9


def test_a_clean_picture_is_of_the_best_quality():
    assert min(truth.quality(task, picture(task.scene)) for task in TASKS) == 4


@pytest.mark.parametrize(("kind", "index"), [("noise", 0), ("blur", 1)])
def test_flaws_are_measured_and_graded_in_the_order_of_their_labels(kind, index):
    random = Random(kind)
    medians, strengths = [], []
    for label in (3, 2, 1):
        marred = []
        for number, task in enumerate(TASKS):
            flaw = flaws.Flaw(kind, random.uniform(*flaws.BANDS[kind][label]), number)
            image = np.asarray(flaws.apply(draw(task.scene, tasks.SIDE, 2), flaw))
            if not task.scene.shapes:
                continue
            if label > 1:  # severe blur leaves nothing of small shapes to measure it by
                strengths.append((flaw.strength, truth.measure(image, task.scene.background)[index]))
            marred.append(truth.quality(task, image))
        medians.append(np.median(marred))
        assert abs(medians[-1] - label) < 0.6
    assert medians == sorted(medians, reverse=True)
    real, measured = np.array(strengths).T
    assert np.corrcoef(real, measured)[0, 1] > 0.9


def right(verbs):
    """(task, picture of the right edit) for the tasks of these verbs."""
    made = [(task, edits.edit(task, "right", SEEN, Random(0))) for task in TASKS if task.verb in verbs]
    return [(task, one.scene) for task, one in made]


def test_an_erased_picture_is_neither_right_nor_of_any_quality():
    for task in TASKS:
        blank = np.full((64, 64, 3), task.scene.background, np.uint8)
        left = len(task.scene.shapes) - (task.verb == "remove")
        assert truth.quality(task, blank) == (1 if left else 4)
        assert truth.following(task, blank) == (4 if not left and task.scene.shapes else pytest.approx(1.5, abs=0.5))


def test_pixels_at_random_are_no_right_edit():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    assert {truth.following(task, noise) for task in TASKS} <= {1, 2}


def test_another_background_is_more_than_was_asked_for():
    for task, scene in right({"recolour", "replace", "remove"}):
        shifted = replace(scene, background=tuple(c - 30 if c > 127 else c + 30 for c in scene.background))
        assert truth.following(task, picture(shifted)) == 2


def test_a_shape_that_is_still_seen_faintly_is_half_removed():
    for task, scene in right({"remove"}):
        faint = picture(scene).astype(float) * 0.75 + picture(task.scene).astype(float) * 0.25
        assert truth.following(task, faint.round().astype(np.uint8)) < 4


def test_a_target_that_has_moved_or_shrunk_meanwhile_is_not_right():
    for task, scene in right({"recolour", "replace", "move"}):
        goal = task.goal
        shrunk = replace(scene, shapes=tuple(replace(s, size=0.7 * s.size) if s is goal else s for s in scene.shapes))
        assert truth.following(task, picture(shrunk)) < 4
        if task.verb != "move":
            way = 0.09 if goal.x < 0.5 else -0.09
            moved = replace(scene, shapes=tuple(replace(s, x=s.x + way) if s is goal else s for s in scene.shapes))
            assert truth.following(task, picture(moved)) < 4


def test_a_colour_that_has_no_name_is_none_of_the_world():
    for task, scene in right({"recolour"}):
        muddy = replace(
            scene, shapes=tuple(replace(s, rgb=(120, 95, 70)) if s is task.goal else s for s in scene.shapes)
        )
        if max(abs(a - b) for a, b in zip((120, 95, 70), scene.background, strict=True)) > 60:
            assert truth.following(task, picture(muddy)) < 4


def test_a_task_is_the_same_whenever_it_is_drawn_and_no_two_splits_share_one():
    assert tasks.task("tests", 3) == TASKS[3]
    training = {tasks.task(tasks.TRAINING, number) for number in range(200)}
    assert not training & {tasks.task(tasks.HELD_OUT, number) for number in range(200)}
