"""Pixels of a flat drawing: find its shapes, clear, recolour, draw and move them, take flaws away. Pillow and numpy.

Everything is seen in the picture itself. Lengths are in units of the picture's shorter side.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

RGB = tuple[int, int, int]
Box = tuple[int, int, int, int]
Label = tuple[str, str]
"""Colour and kind, ("red", "square")."""

COLOURS: dict[str, RGB] = {
    "red": (220, 30, 30),
    "orange": (250, 140, 10),
    "yellow": (250, 225, 30),
    "green": (20, 150, 30),
    "blue": (30, 70, 225),
    "purple": (140, 20, 180),
}
KINDS = ("circle", "square", "triangle")
WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}

_HUES = ((15, "red"), (45, "orange"), (70, "yellow"), (170, "green"), (258, "blue"), (335, "purple"), (361, "red"))
_STEPS = (0.42, 0.35, 0.5, 0.28, 0.6)  # how far a move goes, the most likely first
_SIZES = (0.14, 0.11, 0.08)  # radius of a new shape
_CONTRAST = 40  # levels that set a shape off from the background
_NEAR = 24  # levels that are one colour still
_SMALLEST = 0.004  # of the picture's area; what is smaller is dirt
_RADII = {"slight": 1.0, "clear": 2.0, "severe": 3.5}  # of the median that takes noise away, in 64ths

_Pixels = npt.NDArray[np.int16]
_Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Spot:
    """A shape as it is seen: ``mask`` [H, W], bounding ``box`` in pixels, what it looks like, and its colour."""

    mask: _Mask
    box: Box
    label: Label
    rgb: RGB


class Canvas:
    """A picture that is painted on. ``image`` is a copy of what was given, RGB."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image.convert("RGB")
        self._background = _commonest(_pixels(self.image))

    @property
    def unit(self) -> int:
        """Pixels of the shorter side."""
        return min(self.image.size)

    def spots(self) -> list[Spot]:
        """All shapes."""
        pixels = _pixels(self.image)
        contrast = np.abs(pixels - self._background).max(axis=2)
        return [_spot(pixels, mask) for mask in _components(contrast > _CONTRAST)]

    def find(self, label: Label, near: Box | None) -> Spot | None:
        """The shape that is most like ``label`` and best placed; one that shares neither colour nor place is none."""

        def likeness(spot: Spot) -> float:
            colour, kind = (ours == theirs for ours, theirs in zip(spot.label, label, strict=True))
            return 2 * colour + 0.5 * kind + (0 if near is None else 1.5 * _overlap(spot.box, near))

        best = max(self.spots(), key=likeness, default=None)
        return best if best is not None and likeness(best) >= 1 else None

    def clear(self, spot: Spot) -> None:
        """Paint the background over a shape, the soft edge included."""
        self._fill(_grown(spot.mask, 5), _as_rgb(self._background))

    def turn_into(self, spot: Spot, label: Label, *, half: bool = False) -> None:
        """Give a shape another colour or kind. Of a ``half`` shape, the other half is drawn too."""
        colour, kind = label
        rgb = spot.rgb if spot.label[0] == colour else COLOURS[colour]
        if half:
            self.clear(spot)
            self._draw(kind, rgb, _whole(spot))
        elif spot.label[1] == kind:
            self._recolour(spot, rgb)
        else:
            self.clear(spot)
            self._draw(kind, rgb, spot.box)

    def draw(self, label: Label, box: Box) -> None:
        """A new shape that fills the box."""
        self._draw(label[1], COLOURS[label[0]], box)

    def move(self, spot: Spot, way: str, steps: tuple[float, ...] = _STEPS) -> None:
        """Shift a shape by the first of ``steps`` that stays inside and leads to a free place, or the freest."""
        places = [place for step in steps if self._inside(place := _shifted(spot.box, way, step * self.unit))]
        if not places:
            return
        others = [other.box for other in self.spots() if not (other.mask & spot.mask).any()]
        place = min(places, key=lambda one: sum(_overlap(one, other) for other in others))
        shape, stencil = self.image.crop(spot.box), Image.fromarray(spot.mask).crop(spot.box)
        self.clear(spot)
        self.image.paste(shape, place[:2], stencil)

    def free_box(self) -> Box:
        """The place nearest to the middle where a shape has room, a smaller one where it must be; else the middle."""
        taken = [spot.box for spot in self.spots()]
        width, height = self.image.size
        for size in _SIZES:
            radius = round(size * self.unit)
            room = round(1.3 * radius)
            steps = range(room, max(width, height) - room + 1, max(1, radius // 4))
            centres = [(x, y) for x in steps for y in steps if x <= width - room and y <= height - room]
            for x, y in sorted(centres, key=lambda c: abs(c[0] - width / 2) + abs(c[1] - height / 2)):
                if not any(_overlap((x - room, y - room, x + room, y + room), box) for box in taken):
                    return x - radius, y - radius, x + radius, y + radius
        return width // 2 - radius, height // 2 - radius, width // 2 + radius, height // 2 + radius

    def _inside(self, box: Box) -> bool:
        return box[0] >= 0 and box[1] >= 0 and box[2] <= self.image.width and box[3] <= self.image.height

    def _fill(self, mask: _Mask, rgb: RGB) -> None:
        self.image.paste(rgb, (0, 0, *self.image.size), Image.fromarray(mask))

    def _recolour(self, spot: Spot, rgb: RGB) -> None:
        """All inside in one colour; at the edge as much of it as there was of the shape."""
        contrast = np.abs(_pixels(self.image) - self._background).max(axis=2)
        strength = np.abs(np.array(spot.rgb) - self._background).max()
        share = np.where(_shrunk(spot.mask), 1, (contrast / strength).clip(0, 1) * _grown(spot.mask, 3))
        self.image.paste(_as_rgb(self._background), (0, 0, *self.image.size), Image.fromarray(_grown(spot.mask, 3)))
        self.image.paste(rgb, (0, 0, *self.image.size), Image.fromarray((255 * share).round().astype(np.uint8)))

    def _draw(self, kind: str, rgb: RGB, box: Box) -> None:
        fine = 4
        stencil = Image.new("L", (self.image.width * fine, self.image.height * fine))
        left, top, right, bottom = (fine * side for side in box)
        pen = ImageDraw.Draw(stencil)
        match kind:
            case "circle":
                pen.ellipse((left, top, right, bottom), fill=255)
            case "square":
                pen.rectangle((left, top, right, bottom), fill=255)
            case _:
                pen.polygon(((left + right) // 2, top, right, bottom, left, bottom), fill=255)
        self.image.paste(rgb, (0, 0, *self.image.size), stencil.resize(self.image.size, Image.Resampling.BOX))


def without_flaw(image: Image.Image, kind: str, strength: str) -> Image.Image:
    """The picture without noise, blur, seams, blocks or ghosting that is slight, clear or severe."""
    if kind == "seams":
        return _without_seams(image)
    unit = min(image.size) / 64
    radius = _RADII[strength] * unit
    if kind == "noise":
        smooth = image.filter(ImageFilter.MedianFilter(2 * round(radius) + 1)).filter(ImageFilter.GaussianBlur(unit))
    elif kind == "blocks":
        smooth = image.filter(ImageFilter.GaussianBlur(unit))
    else:
        smooth = image
    return _flattened(smooth, typical=98 if kind == "ghosting" else 75)


def _flattened(image: Image.Image, typical: int) -> Image.Image:
    """Every shape in one colour on one background, edges where a shape is half as strong as in its middle.

    ``typical``: how strong that is, as a percentile of the shape's pixels. Of a picture that was laid over itself only
    a part is at full strength.
    """
    pixels = _pixels(image)
    background = _commonest(pixels)
    contrast = np.abs(pixels - background).max(axis=2)
    flat = np.broadcast_to(background, pixels.shape).astype(np.uint8)
    for mask in _components(contrast > _CONTRAST):
        strong = np.percentile(contrast[mask], typical)
        flat[mask & (contrast > strong / 2)] = _commonest(pixels[mask & (contrast > 0.8 * strong)])
    return Image.fromarray(flat)


def _without_seams(image: Image.Image) -> Image.Image:
    """Find the rectangle in which the background is lighter or darker, and take the step away."""
    pixels = _pixels(image)
    apart = pixels - _commonest(pixels)
    even = (np.ptp(apart, axis=2) <= 4) & (np.abs(apart).max(axis=2) > 8)
    if even.mean() < 0.02:
        return image
    step = round(float(np.median(apart[even])))
    stepped = even & (np.abs(apart.mean(axis=2) - step) <= 4)
    rows, columns = stepped.sum(axis=1), stepped.sum(axis=0)
    (top, bottom), (left, right) = (np.flatnonzero(n > 0.15 * n.max())[[0, -1]] for n in (rows, columns))
    pixels[top : bottom + 1, left : right + 1] -= step
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _pixels(image: Image.Image) -> _Pixels:
    return np.asarray(image, np.int16).copy()


def _commonest(colours: _Pixels) -> _Pixels:
    """The commonest one of many colours [..., 3], but for noise."""
    coarse = colours.astype(np.int64) // 16 @ np.array((256, 16, 1))
    rough = np.median(colours[coarse == np.bincount(coarse.ravel()).argmax()], axis=0)
    return np.median(colours[np.abs(colours - rough).max(axis=-1) <= _NEAR], axis=0).astype(np.int16)


def _components(mask: _Mask) -> list[_Mask]:
    """The connected parts of a mask, dirt left out."""
    names = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:  # every run of pixels takes its largest name, by rows and by columns, until nothing changes
        spread = _runs(_runs(names).T).T
        if (spread == names).all():
            break
        names = spread
    found, sizes = np.unique(names[mask], return_counts=True)
    return [names == name for name, size in zip(found, sizes, strict=True) if size >= _SMALLEST * mask.size]


def _runs(names: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Along each row: the largest number of every stretch that has no 0 in it."""
    line = np.pad(names, ((0, 0), (0, 1))).ravel()  # with a gap between the rows
    starts = np.flatnonzero(np.diff(line > 0, prepend=not line[0]))
    largest = np.repeat(np.maximum.reduceat(line, starts), np.diff(starts, append=len(line)))
    return largest.reshape(len(names), -1)[:, :-1]


def _spot(pixels: _Pixels, mask: _Mask) -> Spot:
    """What a part of the picture looks like."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    rgb = _as_rgb(_commonest(pixels[mask]))
    return Spot(mask, box, (_colour_name(rgb), _kind(mask, box)), rgb)


def _colour_name(rgb: RGB) -> str:
    hue = 360 * colorsys.rgb_to_hsv(*(level / 255 for level in rgb))[0]
    return next(name for end, name in _HUES if hue < end)


def _kind(mask: _Mask, box: Box) -> str:
    """By how much of its box a shape fills: all, a circle's 79%, a triangle's half."""
    share = mask.sum() / ((box[2] - box[0]) * (box[3] - box[1]))
    return "square" if share > 0.89 else "circle" if share > 0.66 else "triangle"


def _as_rgb(colour: npt.NDArray[np.generic]) -> RGB:
    red, green, blue = (int(level) for level in colour)
    return red, green, blue


def _grown(mask: _Mask, size: int) -> _Mask:
    return np.asarray(Image.fromarray(mask.astype(np.uint8)).filter(ImageFilter.MaxFilter(size)), bool)


def _shrunk(mask: _Mask) -> _Mask:
    return np.asarray(Image.fromarray(mask.astype(np.uint8)).filter(ImageFilter.MinFilter(3)), bool)


def _whole(spot: Spot) -> Box:
    """The box of all of a shape of which a half is there: grown to the side where it is cut, if it is oblong."""
    left, top, right, bottom = spot.box
    width, height = right - left, bottom - top
    seen = spot.mask[top:bottom, left:right]
    if width < 0.8 * height:
        return (
            (left - width, top, right, bottom)
            if seen[:, 0].sum() > seen[:, -1].sum()
            else (left, top, right + width, bottom)
        )
    if height < 0.8 * width:
        up = spot.label[1] == "triangle" or seen[0].sum() > seen[-1].sum()
        return (left, top - height, right, bottom) if up else (left, top, right, bottom + height)
    return spot.box


def _shifted(box: Box, way: str, length: float) -> Box:
    dx, dy = (round(length * part) for part in WAYS[way])
    return box[0] + dx, box[1] + dy, box[2] + dx, box[3] + dy


def _overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return width * height / (areas - width * height)
