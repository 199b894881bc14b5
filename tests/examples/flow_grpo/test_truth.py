"""What is read off a picture is what was drawn: the measure that the experiment is judged by."""

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


@pytest.mark.parametrize(("kind", "index"), [("noise", 0), ("blur", 1)])
def test_flaws_are_measured_and_graded_in_the_order_of_their_labels(kind, index):
    random = Random(kind)
    clean = [truth.quality(picture(task.scene), task.scene.background) for task in TASKS]
    assert min(clean) == 4
    medians, strengths = [], []
    for label in (3, 2, 1):
        marred = []
        for number, task in enumerate(TASKS):
            flaw = flaws.Flaw(kind, random.uniform(*flaws.BANDS[kind][label]), number)
            image = np.asarray(flaws.apply(draw(task.scene, tasks.SIDE, 2), flaw))
            if not task.scene.shapes:
                continue
            if label > 1:  # severe blur leaves nothing of small shapes to measure it by
                strengths.append((flaw.strength, truth.flaws(image, task.scene.background)[index]))
            marred.append(truth.quality(image, task.scene.background))
        medians.append(np.median(marred))
        assert abs(medians[-1] - label) < 0.85
    assert medians == sorted(medians, reverse=True)
    real, measured = np.array(strengths).T
    assert np.corrcoef(real, measured)[0, 1] > 0.9


def test_an_empty_and_a_random_picture_are_no_right_edits():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for task in TASKS[:20]:
        if task.verb != "remove" or len(task.scene.shapes) > 1:
            blank = np.full((64, 64, 3), task.scene.background, np.uint8)
            assert truth.following(task, blank) < 4
        assert truth.following(task, noise) < 4


def test_a_task_is_the_same_whenever_it_is_drawn_and_no_two_splits_share_one():
    assert tasks.task("tests", 3) == TASKS[3]
    training = {tasks.task(tasks.TRAINING, number) for number in range(200)}
    assert not training & {tasks.task(tasks.HELD_OUT, number) for number in range(200)}
