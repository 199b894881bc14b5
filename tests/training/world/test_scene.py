"""Scenes are drawn where they say, in colours that cannot be taken for one another."""

import itertools
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jrm_service.images.preprocess import ImageSpec, resize
from jrm_training.world import scene as scenes
from jrm_training.world.scene import COLOURS, KINDS, LARGEST, SMALLEST, Scene, Shape, draw, place, shade, turn
from support import worlds

SEEN_BY_THE_MODEL = ImageSpec(min_pixels=64 * 64, max_pixels=64 * 64, patch_size=8)
HALVES = ("left", "right", "top", "bottom")


def one_shape(random: Random, kind: str, **changes: object) -> tuple[Scene, Shape]:
    """A scene with one shape in it; a place for one is always found at once."""
    scene = scenes.empty_scene(random)
    size = random.uniform(SMALLEST, LARGEST)
    x, y = place(scene, size, random)
    colour = random.choice(list(COLOURS))
    shape = replace(Shape(kind, colour, shade(colour, random), x, y, size, turn(kind, random)), **changes)
    return scene.plus(shape), shape


def drawn_box(changed: np.ndarray) -> np.ndarray:
    """[x1, y1, x2, y2] of the True pixels on a scale of 0 to 1000."""
    rows, columns = (np.flatnonzero(changed.any(axis=axis)) for axis in (1, 0))
    height, width = changed.shape
    return np.array([columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height]) * 1000


@given(worlds.randoms, st.sampled_from(KINDS), st.sampled_from([None, *HALVES]), st.booleans())
@settings(max_examples=80, deadline=None)
def test_a_box_is_around_what_is_drawn(random, kind, half, two_colours):
    second = (1, 2, 3) if half is not None and two_colours else None
    scene, shape = one_shape(random, kind, half=half, second=second)
    drawn = drawn_box(worlds.changed(worlds.without_shapes(scene), scene, side=256))
    np.testing.assert_allclose(scene.box(shape), drawn, atol=12)  # 5 of rounding, 4 of a pixel


@given(worlds.randoms, st.sampled_from(KINDS))
@settings(max_examples=60, deadline=None)
def test_a_box_is_around_what_the_model_sees(random, kind):
    scene, shape = one_shape(random, kind)
    before, after = (
        resize(draw(one, 192), SEEN_BY_THE_MODEL).astype(int) for one in (worlds.without_shapes(scene), scene)
    )
    drawn = drawn_box(np.abs(before - after).max(axis=2) > 40)
    np.testing.assert_allclose(scene.box(shape), drawn, atol=5 + 2 * 1000 / min(before.shape[:2]))


@given(worlds.randoms, st.sampled_from(KINDS), st.sampled_from([("left", "right"), ("top", "bottom")]))
@settings(max_examples=40, deadline=None)
def test_two_halves_make_a_whole(random, kind, halves):
    scene, shape = one_shape(random, kind)
    empty = worlds.without_shapes(scene)
    one, other = (worlds.changed(empty, empty.plus(replace(shape, half=half))) for half in halves)
    assert one.any()
    assert other.any()
    assert not (one & other).any()
    np.testing.assert_array_equal(one | other, worlds.changed(empty, scene))


@pytest.mark.parametrize("half", HALVES)
def test_a_second_colour_is_painted_over_that_half_only(half):
    shape = Shape("square", "red", (255, 0, 0), 0.5, 0.5, 0.25, half=half, second=(0, 0, 255))
    image = worlds.pixels(Scene(1, 1, (255, 255, 255), (shape,)), side=64)
    points = {"left": (32, 20), "right": (32, 44), "top": (20, 32), "bottom": (44, 32)}
    assert {name for name, (y, x) in points.items() if tuple(image[y, x]) == (0, 0, 255)} >= {half}
    opposite = dict(zip(HALVES, ("right", "left", "bottom", "top"), strict=True))[half]
    assert tuple(image[points[opposite]]) == (255, 0, 0)


@given(worlds.tasks)
@settings(max_examples=60, deadline=None)
def test_shapes_lie_inside_and_apart(task):
    scene = task.scene
    for shape in scene.shapes:
        left, top, right, bottom = shape.extent()
        assert left >= 0
        assert top >= 0
        assert right <= scene.width
        assert bottom <= scene.height
    empty = worlds.without_shapes(scene)
    alone = [worlds.changed(empty, empty.plus(shape), side=64) for shape in scene.shapes]
    assert sum(one.sum() for one in alone) - np.any(alone, axis=0).sum() <= 2  # corner to corner, see has_room


def test_no_place_is_found_where_none_is_free():
    scene = Scene(1, 1, (0, 0, 0), (Shape("circle", "red", (255, 0, 0), 0.5, 0.5, 0.4),))
    assert place(scene, LARGEST, Random(0)) is None


def test_a_shape_may_take_its_own_place_again():
    scene = Scene(1, 1, (0, 0, 0), (Shape("circle", "red", (255, 0, 0), 0.5, 0.5, 0.2),))
    assert not scene.has_room(0.55, 0.5, 0.2)
    assert scene.has_room(0.55, 0.5, 0.2, ignore=[0])


def test_no_two_names_share_a_shade():
    random = Random(0)
    shades = {colour: np.array([shade(colour, random) for _ in range(500)]) for colour in COLOURS}
    for one, other in itertools.combinations(COLOURS, 2):
        distances = np.abs(shades[one][:, None] - shades[other][None]).max(axis=2)
        assert distances.min() > 30, f"{one} and {other}"


def test_every_shade_stands_out_from_every_background():
    random = Random(0)
    backgrounds = np.array([scenes.empty_scene(random).background for _ in range(300)])
    for colour in COLOURS:
        shades = np.array([shade(colour, random) for _ in range(200)])
        assert np.abs(shades[:, None] - backgrounds[None]).max(axis=2).min() > 60, colour


def test_a_black_outline_is_not_drawn_where_it_would_be_invisible():
    random = Random(0)
    drawn = [scenes.empty_scene(random) for _ in range(500)]
    assert {scene.pen for scene in drawn} == {"none", "black", "dark"}
    assert {scene.pen for scene in drawn if max(scene.background) < 64} == {"none", "dark"}


@pytest.mark.parametrize(("width", "height", "size"), [(1, 1, (96, 96)), (1.34, 1, (129, 96)), (1, 1.34, (96, 129))])
@pytest.mark.parametrize("oversample", [1, 3])
def test_the_shorter_side_is_what_was_asked_for(width, height, size, oversample):
    image = draw(Scene(width, height, (9, 8, 7), ()), 96, oversample)
    assert (image.mode, image.size) == ("RGB", size)
    assert image.getpixel((0, 0)) == (9, 8, 7)


def test_oversampling_smooths_edges():
    scene = Scene(1, 1, (255, 255, 255), (Shape("circle", "blue", (0, 0, 255), 0.5, 0.5, 0.2),))
    jagged, smooth = (len(set(draw(scene, 64, oversample).get_flattened_data())) for oversample in (1, 4))
    assert jagged == 2
    assert smooth > 5
