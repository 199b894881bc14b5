import io
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image, ImageColor

from jrm_client import Explanation
from jrm_client.overlay import COLORS, color_of
from jrm_client.protocol import EditRegion


def explanation(*boxes: tuple[int, int, int, int], label: str = "red square") -> Explanation:
    regions = [
        EditRegion(id=number, label=label, bbox_2d=(0, 0, 1000, 1000), bbox_pixels=box)
        for number, box in enumerate(boxes)
    ]
    return Explanation(status="ok", edit_regions=regions)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def drawn(background: Image.Image, *boxes: tuple[int, int, int, int], label: str = "red square") -> np.ndarray:
    """Where the overlay differs from the image, [H, W]."""
    return (pixels(explanation(*boxes, label=label).overlay(background)) != pixels(background)).any(axis=2)


def rgb(region: int) -> tuple[int, ...]:
    return ImageColor.getrgb(color_of(region))


def test_without_regions_it_is_a_copy() -> None:
    edited = Image.new("RGB", (40, 30), "teal")
    overlay = explanation().overlay(edited)
    assert overlay is not edited
    assert (overlay.mode, overlay.size) == ("RGB", (40, 30))
    assert not drawn(edited).any()


def test_the_image_itself_is_not_drawn_on() -> None:
    edited = Image.new("RGB", (200, 200), "teal")
    explanation((10, 50, 100, 150)).overlay(edited)
    assert edited.getcolors() == [(40_000, ImageColor.getrgb("teal"))]


@pytest.mark.parametrize("size", [(200, 200), (1600, 900)])
def test_a_box_has_its_edges_where_the_region_is(size: tuple[int, int]) -> None:
    width, height = size
    left, top, right, bottom = box = (width // 4, height // 2, width // 2, height - 20)
    overlay = pixels(explanation(box).overlay(Image.new("RGB", size, "white")))
    for row, column in ((top, left), (bottom - 1, right - 1), (top, right - 1), (bottom - 1, left)):
        assert tuple(overlay[row, column]) == rgb(0)
    assert (overlay[(top + bottom) // 2, (left + right) // 2] == 255).all()  # what it is about stays visible


def test_regions_have_distinct_colours_in_which_black_text_can_be_read() -> None:
    assert len(set(COLORS)) == len(COLORS) >= 8
    shares = np.array([0.2126, 0.7152, 0.0722])
    for color in COLORS:
        linear = ((np.array(ImageColor.getrgb(color)) / 255 + 0.055) / 1.055) ** 2.4
        assert (shares @ linear + 0.05) / 0.05 >= 4.5  # the contrast that WCAG asks for


@pytest.mark.parametrize("background", [*COLORS, "black", "white"])
def test_a_box_stands_out_from_any_background(background: str) -> None:
    edited = Image.new("RGB", (100, 100), background)
    row = drawn(edited, (20, 40, 80, 90))[65]
    assert row[18:24].any()
    assert row[76:82].any()


@pytest.mark.parametrize("size", [(64, 64), (300, 40), (40, 300), (512, 341), (1200, 900)])
@pytest.mark.parametrize("label", ["square", "a label that is longer than the images are wide " * 9, "", "\n"])
def test_labels_stay_inside_the_image(size: tuple[int, int], label: str) -> None:
    """A label is a plate with a black edge and black text: one that was cut off would lack an edge."""
    width, height = size
    for box in ((0, 0, 8, 8), (width - 8, 0, width, 8), (0, height - 8, 8, height), (width - 8, height - 8, *size)):
        overlay = pixels(explanation(box, label=label).overlay(Image.new("RGB", size, "white")))
        rows, columns = np.nonzero((overlay == rgb(0)).all(axis=2))
        plate = overlay[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert plate.shape[0] > 8 or plate.shape[1] > 8  # more than the box: the label is there
        assert (overlay == 0).all(axis=2).any()


def test_labels_do_not_cover_each_other() -> None:
    box = (50, 200, 150, 300)
    edited = Image.new("RGB", (600, 600), "white")
    alone = [(pixels(explanation(*[box] * n).overlay(edited)) == rgb(0)).all(axis=2) for n in (1, 2)]
    lost = alone[0] & ~alone[1]
    assert not lost[:195].any()  # the first label, which is over the box, is whole


def test_lines_and_text_grow_with_the_image() -> None:
    shares = [
        drawn(Image.new("RGB", (side, side), "white"), (side // 4, side // 4, side // 2, side // 2)).mean()
        for side in (400, 1600)
    ]
    assert all(0.7 < later / earlier < 1.4 for earlier, later in pairwise(shares))


@pytest.mark.parametrize("box", [(0, 0, 65, 10), (0, 0, 10, 65), (-1, 0, 10, 10), (20, 0, 10, 10), (5, 5, 5, 9)])
def test_a_box_that_is_not_inside_cannot_be_of_this_image(box: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"region 0 has the box .* not inside an image of 64x64"):
        explanation(box).overlay(Image.new("RGB", (64, 64)))


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (200, 1)])
def test_an_image_without_room_for_a_label(size: tuple[int, int]) -> None:
    assert explanation((0, 0, 1, 1)).overlay(Image.new("RGB", size)).size == size


def test_the_edit_may_come_in_any_form() -> None:
    array = np.full((50, 60, 3), 200, np.uint8)
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    forms = [array, Image.fromarray(array), file.getvalue(), array.transpose(2, 0, 1).astype(np.float32) / 255]
    first, *others = [pixels(explanation((5, 20, 50, 45)).overlay(form)) for form in forms]
    assert first.shape == (50, 60, 3)
    assert all((other == first).all() for other in others)
