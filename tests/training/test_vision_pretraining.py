"""Pretraining of the vision tower: the labels of image tokens, and that a few steps of it teach something."""

from random import Random

import numpy as np
import pytest

from jrm_training.model import JointModel
from jrm_training.tiny import write_start
from jrm_training.vision_pretraining import example, pretrain_vision, sample_scene
from jrm_training.world.scene import COLOURS, KINDS, Scene, Shape
from jrm_training.world.tasks import HELD_OUT


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_start(tmp_path_factory.mktemp("tiny") / "start")


def number(colour: str, kind: str) -> int:
    return list(COLOURS).index(colour) * len(KINDS) + KINDS.index(kind)


def test_a_token_shows_the_shape_that_covers_it(checkpoint):
    square = Shape("square", "red", (255, 0, 0), 0.125, 0.375, 0.11)  # the first token of the second row
    circle = Shape("circle", "blue", (0, 0, 255), 0.75, 0.75, 0.12)  # a corner of each of the last four
    scene = Scene(1.0, 1.0, (255, 255, 255), (square, circle))
    _, shown, boxes = example(scene, None, 64, checkpoint.image_spec)
    expected = np.full((4, 4), -1)
    expected[1, 0] = number("red", "square")
    expected[2:, 2:] = number("blue", "circle")
    np.testing.assert_array_equal(shown.reshape(4, 4), expected)
    np.testing.assert_allclose(boxes.reshape(4, 4, 4)[1, 0], [0.015, 0.265, 0.235, 0.485], atol=0.01)
    assert not boxes.reshape(4, 4, 4)[0].any()


def test_an_empty_scene_shows_nothing(checkpoint):
    _, shown, _ = example(Scene(1.0, 1.0, (0, 0, 0), ()), None, 64, checkpoint.image_spec)
    assert (shown == -1).all()


def test_the_form_of_the_picture_is_the_models(checkpoint):
    pixels, shown, boxes = example(Scene(1.34, 1.0, (0, 0, 0), ()), None, 128, checkpoint.image_spec)
    rows, columns = (side // 16 for side in pixels.shape[:2])
    assert columns > rows
    assert len(shown) == len(boxes) == rows * columns


def test_pretraining_teaches_to_see_and_leaves_the_rest_alone(checkpoint):
    model = JointModel.load(checkpoint)
    layers = [weight.detach().clone() for weight in model.backbone.language_model.layers.parameters()]
    losses: list[float] = []
    pretrain_vision(model, checkpoint, steps=12, batch=6, on_step=lambda _step, loss, _right: losses.append(loss))
    assert len(losses) == 12
    assert np.mean(losses[-3:]) < 0.8 * losses[0]
    for before, after in zip(layers, model.backbone.language_model.layers.parameters(), strict=True):
        np.testing.assert_array_equal(before.numpy(), after.detach().numpy())


def test_pretraining_is_the_same_every_time_and_never_shows_what_is_held_out(checkpoint):
    runs = []
    for _ in range(2):
        losses: list[float] = []
        model = JointModel.load(checkpoint)
        pretrain_vision(
            model, checkpoint, steps=2, batch=2, on_step=lambda _s, loss, _r, kept=losses: kept.append(loss)
        )
        runs.append(losses)
    assert runs[0] == runs[1]
    random = Random(0)
    shapes = {(shape.colour, shape.kind) for _ in range(200) for shape in sample_scene(random).shapes}
    assert shapes
    assert not shapes & HELD_OUT
