"""The regions of an explanation, drawn on the edited image: boxes and labels that are legible on any background."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from .arguments import integer, sequence
from .images import ImageInput, decode
from .protocol import EditRegion

# Far apart in hue and all of them bright enough for black text. A checkpoint has eight region tags.
COLORS = ("#ff5a5f", "#3ddc84", "#4db8ff", "#ffd23f", "#ff8be0", "#ff9f40", "#66f2f2", "#c3a6ff")
_EDGE = "black"  # the outline of boxes and labels, so that they stand out from a background of their own colour

_SIZE_PER_PIXEL = 1 / 28  # font size per pixel of the mean side
_MIN_SIZE = 10


def color_of(region: int) -> str:
    """Return the colour of a region by its id, as ``#rrggbb``; the same in the overlay and in the terminal."""
    return COLORS[integer(region, "region") % len(COLORS)]


def draw(edited: ImageInput, regions: Sequence[EditRegion]) -> Image.Image:
    """Return an RGB copy of ``edited`` with the regions drawn on it, as ``Explanation.overlay`` describes."""
    regions = sequence(regions, "regions", "a list of EditRegion")
    for index, region in enumerate(regions):
        if not isinstance(region, EditRegion):
            raise TypeError(f"regions[{index}]: {type(region).__name__}; expected EditRegion")
    image = decode(edited, "edited")
    for region in regions:
        _check(region, image.size)
    size = max(_MIN_SIZE, round((image.width * image.height) ** 0.5 * _SIZE_PER_PIXEL))
    canvas = ImageDraw.Draw(image)
    for region in regions:
        _draw_box(canvas, region, max(1, size // 6))
    font = ImageFont.load_default(size)
    taken: list[_Rect] = []
    for region in regions:
        _draw_label(canvas, region, font, _Rect(0, 0, *image.size), taken)
    return image


class _Rect(NamedTuple):
    """Half open: pixels left..right-1, top..bottom-1."""

    left: int
    top: int
    right: int
    bottom: int

    def grown(self, by: int) -> _Rect:
        return _Rect(self.left - by, self.top - by, self.right + by, self.bottom + by)

    def overlaps(self, other: _Rect) -> bool:
        columns = self.left < other.right and other.left < self.right
        return columns and self.top < other.bottom and other.top < self.bottom

    @property
    def corners(self) -> tuple[int, int, int, int]:
        """As pillow wants them, which draws the last row and column too."""
        return self.left, self.top, self.right - 1, self.bottom - 1


def _check(region: EditRegion, size: tuple[int, int]) -> None:
    left, top, right, bottom = region.bbox_pixels
    if not (0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]):
        raise ValueError(
            f"edited: region {region.id} has the box {list(region.bbox_pixels)}, which is not inside an image of "
            f"{size[0]}x{size[1]}; pass the image that was explained"
        )


def _draw_box(canvas: ImageDraw.ImageDraw, region: EditRegion, width: int) -> None:
    box = _Rect(*region.bbox_pixels)
    edge = max(1, width // 2)
    canvas.rectangle(box.grown(edge).corners, outline=_EDGE, width=width + 2 * edge)
    canvas.rectangle(box.corners, outline=color_of(region.id), width=width)


def _draw_label(
    canvas: ImageDraw.ImageDraw,
    region: EditRegion,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    image: _Rect,
    taken: list[_Rect],
) -> None:
    """Draw the label on a plate of the region's colour, clear of other labels; nothing if not even the id fits."""
    ascent = round(font.getbbox("Ag")[3])
    pad = max(1, ascent // 6)
    text = _fitting(f"{region.id} {' '.join(region.label.split())}".strip(), font, image.right - 2 * pad)
    width, height = round(font.getlength(text)) + 2 * pad, ascent + 2 * pad
    if not text or height > image.bottom:
        return
    plates = list(_plates(_Rect(*region.bbox_pixels), width, height, image))
    plate = next((plate for plate in plates if not any(map(plate.overlaps, taken))), plates[0])
    taken.append(plate)
    canvas.rectangle(plate.corners, fill=color_of(region.id), outline=_EDGE)
    canvas.text((plate.left + pad, plate.top + pad), text, fill="black", font=font)


def _plates(box: _Rect, width: int, height: int, image: _Rect) -> Iterator[_Rect]:
    """Where a label may go, best first: above its box, below it, inside it; always inside the image."""
    tops = (box.top - height, box.bottom, box.top, box.bottom - height)
    lefts = (box.left, box.right - width)
    # A box that reaches the border has no room beyond it; a label pushed back into the image would cover the box.
    fitting = [top for top in tops if 0 <= top <= image.bottom - height] or [box.top]
    for top, left in itertools.product(fitting, lefts):
        x = max(0, min(left, image.right - width))
        y = max(0, min(top, image.bottom - height))
        yield _Rect(x, y, x + width, y + height)


def _fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The longest beginning of ``text`` that is not wider than ``width``, with an ellipsis if it was cut."""
    if font.getlength(text) <= width:
        return text
    number = text.partition(" ")[0]
    length = bisect_right(range(len(text)), float(width), key=lambda end: font.getlength(f"{text[:end]}…")) - 1
    if length > len(number):
        return f"{text[:length].rstrip()}…"
    return number if font.getlength(number) <= width else ""
