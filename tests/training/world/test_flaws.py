"""Flaws can be seen, and seen to be as strong as their label says."""

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jrm_service.images.preprocess import ImageSpec, resize
from jrm_training.world import SEEN
from jrm_training.world.flaws import FLAWS, Flaw, apply, sample
from jrm_training.world.scene import LARGEST, Scene, Shape, draw
from jrm_training.world.tasks import sample_task
from support import worlds

SEEN_BY_THE_MODEL = ImageSpec(min_pixels=64 * 64, max_pixels=64 * 64, patch_size=8)
sides = st.sampled_from([64, 96, 128, 192, 256])


def of_kind(kind: str, label: int, random: Random) -> Flaw:
    return next(flaw for flaw in (sample(label, random) for _ in range(500)) if flaw.kind == kind)


def seen(image) -> np.ndarray:
    return resize(image, SEEN_BY_THE_MODEL).astype(int)


def shows(flawed, image) -> bool:
    """In at least eight of the pixels that the model sees."""
    return bool((np.abs(seen(flawed) - seen(image)).sum(axis=2) > 15).sum() >= 8)


@pytest.mark.parametrize(
    ("kind", "label"), [(kind, label) for kind in FLAWS for label in (3, 2, 1) if (kind, label) != ("blocks", 3)]
)
@given(task=worlds.tasks, random=worlds.randoms, side=sides)
@settings(max_examples=20, deadline=None)
def test_a_flaw_can_be_seen_by_the_model(kind, label, task, random, side):
    image = draw(task.scene, side, 2)
    assert shows(apply(image, of_kind(kind, label, random)), image)


def test_slight_blocks_can_be_seen_but_for_edges_that_fall_on_them():
    """A known limit: where all edges are straight and lie on the grid of the blocks, slight blocks change nothing."""
    random, hidden = Random(0), 0
    for _ in range(500):
        task = sample_task(random, shapes=(1, 5), palette=SEEN)
        image = draw(task.scene, random.choice((64, 96, 128)), 2)
        hidden += not shows(apply(image, of_kind("blocks", 3, random)), image)
    assert hidden <= 5


def distances(kind, task, random, side, pattern):
    """How far what the model sees is from the clean picture, by severity, with the same pattern."""
    image = draw(task.scene, side, 2)
    strengths = [of_kind(kind, label, random).strength for label in (3, 2, 1)]
    assert strengths == sorted(strengths)
    flawed = [apply(image, Flaw(kind, strength, pattern)) for strength in strengths]
    return [np.abs(seen(picture) - seen(image)).mean() for picture in flawed]


@pytest.mark.parametrize("kind", [kind for kind in FLAWS if kind != "blocks"])
@given(task=worlds.tasks, random=worlds.randoms, side=sides, pattern=st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_a_flaw_grows_with_its_severity(kind, task, random, side, pattern):
    slight, middling, severe = distances(kind, task, random, side, pattern)
    assert slight < 1.02 * middling
    assert middling < 1.02 * severe


def test_blocks_grow_with_their_severity_on_the_whole():
    """In one picture larger blocks may happen to fit a shape's edges, and change less than smaller ones."""
    random = Random(0)
    tasks = [sample_task(random, shapes=(1, 5), palette=SEEN) for _ in range(60)]
    slight, middling, severe = np.mean([distances("blocks", task, random, 96, 0) for task in tasks], axis=0)
    assert slight < middling < severe


@pytest.mark.parametrize("kind", FLAWS)
def test_labels_leave_a_gap_between_them(kind):
    random = Random(0)
    strengths = {label: [of_kind(kind, label, random).strength for _ in range(60)] for label in (3, 2, 1)}
    assert max(strengths[3]) * 1.25 < min(strengths[2])
    assert max(strengths[2]) * 1.25 < min(strengths[1])


@pytest.mark.parametrize("kind", FLAWS)
@given(task=worlds.tasks, random=worlds.randoms, side=sides)
@settings(max_examples=15, deadline=None)
def test_a_flaw_keeps_size_and_mode_and_is_the_same_every_time(kind, task, random, side):
    image, flaw = draw(task.scene, side, 1), of_kind(kind, 2, random)
    before = image.tobytes()
    first, second = apply(image, flaw), apply(image, flaw)
    assert (first.size, first.mode) == (image.size, "RGB")
    assert first.tobytes() == second.tobytes() != before == image.tobytes()


def test_the_best_label_has_no_flaw():
    assert sample(4, Random(0)) is None


@pytest.mark.parametrize("label", [3, 2, 1])
@pytest.mark.parametrize("level", [0, 30, 128, 200, 255])
def test_an_empty_picture_gets_flaws_that_show_on_plain_ground(label, level):
    image = draw(Scene(1, 1, (level,) * 3, ()), 64)
    random = Random(0)
    for _ in range(30):
        flawed = apply(image, sample(label, random, empty=True))
        assert np.abs(seen(flawed) - level).max() >= 9


def test_a_seam_on_white_is_darker_even_where_a_dark_shape_fills_most_of_it():
    shape = Shape("square", "blue", (0, 0, 255), 0.5, 0.5, LARGEST)
    image = draw(Scene(1, 1, (255, 255, 255), (shape,)), 64)
    for seed in range(200):
        step = np.asarray(apply(image, Flaw("seams", 15, seed)), int) - np.asarray(image)
        assert (step < 0).any()
        assert (step <= 0).all()


def test_a_ghost_does_not_come_in_at_the_other_side():
    shape = Shape("square", "red", (255, 0, 0), 0.2, 0.2, 0.15)
    image = draw(Scene(1, 1, (255, 255, 255), (shape,)), 64)
    for seed in range(30):
        flawed = np.asarray(apply(image, Flaw("ghosting", 0.45, seed)))
        assert (flawed[40:] == 255).all()
        assert (flawed[:, 40:] == 255).all()


@given(worlds.randoms)
@settings(max_examples=60, deadline=None)
def test_a_ghost_is_fainter_than_what_it_is_a_ghost_of(random):
    assert of_kind("ghosting", 1, random).strength < 0.5


def test_an_unknown_kind_is_an_error():
    with pytest.raises(ValueError, match="flaw is 'rain', must be one of noise, blur"):
        apply(draw(Scene(1, 1, (0, 0, 0), ()), 8), Flaw("rain", 1, 0))
