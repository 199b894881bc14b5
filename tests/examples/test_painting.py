"""Shapes are found as they were drawn, and flaws are taken away."""

from random import Random

import numpy as np
import pytest
from PIL import Image

from jrm_training.world import flaws
from jrm_training.world.scene import Scene, Shape, draw
from painting import Canvas, without_flaw

SHAPES = (
    Shape("square", "red", (220, 20, 60), 0.25, 0.25, 0.14),
    Shape("circle", "yellow", (240, 225, 50), 0.75, 0.3, 0.12),
    Shape("triangle", "purple", (110, 40, 150), 0.5, 0.75, 0.16),
)
BACKGROUNDS = [(255, 255, 255), (128, 128, 128), (0, 0, 0), (215, 230, 240)]


def picture(background=(235, 235, 235), pen="none", shapes=SHAPES, side=128):
    return draw(Scene(1.0, 1.0, background, shapes, pen), side)


def apart(one, other):
    return np.abs(np.asarray(one, float) - np.asarray(other, float)).mean()


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("pen", ["none", "dark"])
def test_shapes_are_found(background, pen):
    found = {spot.label: spot for spot in Canvas(picture(background, pen)).spots()}
    assert set(found) == {(shape.colour, shape.kind) for shape in SHAPES}
    for shape in SHAPES:
        spot = found[shape.colour, shape.kind]
        assert np.abs(np.array(spot.box) - np.array(shape.extent()) * 128).max() <= 2
        assert np.abs(np.array(spot.rgb) - np.array(shape.rgb)).max() <= 2


def test_nothing_is_found_on_an_empty_picture():
    canvas = Canvas(picture(shapes=()))
    assert canvas.spots() == []
    assert canvas.find(("red", "square"), None) is None


def test_the_place_decides_between_shapes_of_one_colour():
    twins = (SHAPES[0], Shape("square", "red", (220, 20, 60), 0.7, 0.7, 0.1))
    found = Canvas(picture(shapes=twins)).find(("red", "square"), (76, 76, 103, 103))
    assert found is not None
    assert found.box[0] > 64


def test_what_is_cleared_leaves_no_trace():
    canvas = Canvas(picture())
    for spot in canvas.spots():
        canvas.clear(spot)
    assert canvas.image.tobytes() == picture(shapes=()).tobytes()


def test_the_picture_that_was_given_stays():
    given = picture()
    before = given.tobytes()
    canvas = Canvas(given)
    canvas.clear(canvas.spots()[0])
    assert given.tobytes() == before


def test_a_move_stays_inside_and_off_the_others():
    canvas = Canvas(picture())
    spot = canvas.find(("red", "square"), None)
    canvas.move(spot, "left")  # there is no room
    assert canvas.image.tobytes() == picture().tobytes()
    canvas.move(spot, "down", (0.05, 0.5))
    moved = canvas.find(("red", "square"), None)
    assert moved.box[1] == spot.box[1] + 6


def test_a_move_goes_past_what_is_in_the_way():
    below = Shape("circle", "yellow", (240, 225, 50), 0.25, 0.5, 0.08)
    canvas = Canvas(picture(shapes=(SHAPES[0], below)))
    spot = canvas.find(("red", "square"), None)
    canvas.move(spot, "down", (0.25, 0.5))
    assert canvas.find(("red", "square"), None).box[1] == spot.box[1] + 64
    assert len(canvas.spots()) == 2


def test_a_free_place_is_free():
    canvas = Canvas(picture())
    left, top, right, bottom = canvas.free_box()
    assert (np.asarray(canvas.image)[top:bottom, left:right] == 235).all()


@pytest.mark.parametrize("half", ["left", "right", "top", "bottom"])
def test_a_half_circle_is_completed(half):
    whole = Shape("circle", "blue", (30, 70, 225), 0.5, 0.5, 0.15)
    canvas = Canvas(picture(shapes=(Shape("circle", "blue", (30, 70, 225), 0.5, 0.5, 0.15, half=half),)))
    canvas.turn_into(canvas.spots()[0], ("blue", "circle"), half=True)
    assert apart(canvas.image, picture(shapes=(whole,))) < 1


@pytest.mark.parametrize(("label", "strength"), [(3, "slight"), (2, "clear"), (1, "severe")])
@pytest.mark.parametrize("kind", flaws.FLAWS)
def test_a_picture_without_its_flaw_is_nearer_to_the_clean_one(kind, label, strength):
    clean = picture()
    low, high = flaws.BANDS[kind][label]
    gains = []
    for seed in range(4):
        flawed = flaws.apply(clean, flaws.Flaw(kind, Random(seed).uniform(low, high), seed))
        mended = without_flaw(flawed, kind, strength)
        assert mended.size == clean.size
        gains.append(apart(flawed, clean) - apart(mended, clean))
    assert np.mean(gains) > 0


def test_seams_that_are_not_there_are_not_taken_away():
    assert without_flaw(picture(), "seams", "clear").tobytes() == picture().tobytes()
    plain = Image.new("RGB", (64, 64), "white")
    assert without_flaw(plain, "noise", "severe").tobytes() == plain.tobytes()
