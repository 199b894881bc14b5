"""Scenes of the synthetic world: a few plain shapes on a plain background, and how they are drawn.

Lengths are in units of the image's shorter side, so that one scene can be drawn at any size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Literal

from PIL import Image, ImageDraw

RGB = tuple[int, int, int]
Box = tuple[int, int, int, int]
Half = Literal["left", "right", "top", "bottom"]
Pen = Literal["none", "black", "dark"]

KINDS = ("circle", "square", "triangle")
# What people and programs mean by a colour's name: several values each, jittered when a shape is made.
COLOURS: dict[str, tuple[RGB, ...]] = {
    "red": ((255, 0, 0), (220, 20, 60), (200, 30, 30), (235, 50, 45)),
    "green": ((0, 128, 0), (0, 200, 0), (34, 139, 34), (50, 205, 50), (10, 240, 20)),
    "blue": ((0, 0, 255), (30, 60, 220), (65, 105, 225), (10, 20, 190), (30, 120, 250)),
    "yellow": ((255, 255, 0), (255, 225, 20), (240, 225, 50)),
    "purple": ((128, 0, 128), (148, 0, 211), (160, 32, 240), (110, 40, 150)),
    "orange": ((255, 165, 0), (255, 140, 0), (240, 130, 30), (255, 127, 14)),
}
_BACKGROUNDS: tuple[tuple[RGB, int], ...] = (
    ((255, 255, 255), 8),
    ((235, 235, 235), 4),
    ((200, 200, 200), 3),
    ((128, 128, 128), 2),
    ((245, 240, 225), 2),
    ((215, 230, 240), 2),
    ((225, 240, 220), 2),
    ((30, 30, 30), 3),
    ((0, 0, 0), 2),
)
_CORNERS: dict[str, tuple[tuple[float, float], ...]] = {
    "square": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
    "triangle": ((0, -1), (1, 0.85), (-1, 0.85)),
}
_JITTER = 12
SMALLEST, LARGEST = 0.09, 0.19
_MARGIN = 0.03


@dataclass(frozen=True, slots=True)
class Shape:
    """One object: ``size`` is half its side or its radius, ``turn`` degrees of rotation about its centre.

    ``half`` keeps only that half of the shape; ``second`` paints that half in another colour instead.
    """

    kind: str
    colour: str
    rgb: RGB
    x: float
    y: float
    size: float
    turn: float = 0.0
    half: Half | None = None
    second: RGB | None = None

    @property
    def label(self) -> str:
        """Its name for people, such as "red square"."""
        return f"{self.colour} {self.kind}"

    def outline(self) -> list[tuple[float, float]]:
        """Corner points; a circle is a polygon too fine to see."""
        if self.kind == "circle":
            turns = [n * math.tau / 48 for n in range(48)]
            return [(self.x + self.size * math.cos(t), self.y + self.size * math.sin(t)) for t in turns]
        cos, sin = math.cos(math.radians(self.turn)), math.sin(math.radians(self.turn))
        return [
            (self.x + self.size * (cos * dx - sin * dy), self.y + self.size * (sin * dx + cos * dy))
            for dx, dy in _CORNERS[self.kind]
        ]

    def extent(self) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) of what is drawn: of half a shape, that half only."""
        corners = self.outline()
        if self.half is not None and self.second is None:
            corners = _cut(corners, self.half, self.x, self.y)
        xs, ys = [x for x, _ in corners], [y for _, y in corners]
        return min(xs), min(ys), max(xs), max(ys)


@dataclass(frozen=True, slots=True)
class Scene:
    """``width`` by ``height`` (the shorter is 1) with shapes side by side.

    ``pen`` is what their outlines are drawn in, if at all: black, or a darker shade of each.
    """

    width: float
    height: float
    background: RGB
    shapes: tuple[Shape, ...]
    pen: Pen = "none"

    def box(self, shape: Shape) -> Box:
        """``bbox_2d`` of appendix C: [x1, y1, x2, y2] on a scale of 0 to 1000, in tens: a pixel of 64 is 16 wide."""
        left, top, right, bottom = shape.extent()
        sides = (left / self.width, top / self.height, right / self.width, bottom / self.height)
        x1, y1, x2, y2 = (min(1000, max(0, 10 * round(100 * side))) for side in sides)
        return x1, y1, x2, y2

    def plus(self, shape: Shape) -> Scene:
        """A copy with one more shape."""
        return replace(self, shapes=(*self.shapes, shape))

    def has_room(self, x: float, y: float, size: float, ignore: Sequence[int] = ()) -> bool:
        """Whether a shape would be inside the image and clear of all others (except those with an index in ``ignore``).

        Of two of the largest squares, corner to corner, less than a pixel in 64 may still meet.
        """
        reach = size * 1.29  # a leaning square or triangle is wider than its side
        if not (reach <= x <= self.width - reach and reach <= y <= self.height - reach):
            return False
        others = (shape for n, shape in enumerate(self.shapes) if n not in ignore)
        return all(math.hypot(o.x - x, o.y - y) > (o.size + size) * 1.3 + _MARGIN for o in others)


def _cut(corners: list[tuple[float, float]], half: Half, x: float, y: float) -> list[tuple[float, float]]:
    """Corners of the part of a polygon to that side of (x, y)."""
    axis, sign, level = {"left": (0, -1, x), "right": (0, 1, x), "top": (1, -1, y), "bottom": (1, 1, y)}[half]
    kept = []
    for a, b in zip(corners, corners[1:] + corners[:1], strict=True):
        da, db = sign * (a[axis] - level), sign * (b[axis] - level)
        if da >= 0:
            kept.append(a)
        if da * db < 0:
            share = da / (da - db)
            kept.append((a[0] + share * (b[0] - a[0]), a[1] + share * (b[1] - a[1])))
    return kept


def shade(colour: str, random: Random) -> RGB:
    """One of the values that a colour's name stands for."""
    r, g, b = (min(255, max(0, c + random.randint(-_JITTER, _JITTER))) for c in random.choice(COLOURS[colour]))
    return r, g, b


def turn(kind: str, random: Random) -> float:
    """Most shapes stand straight, some lean."""
    return random.uniform(-20, 20) if kind != "circle" and random.random() < 0.25 else 0.0


def place(scene: Scene, size: float, random: Random, tries: int = 60) -> tuple[float, float] | None:
    """A free place for a shape of this size, None when none was found."""
    for _ in range(tries):
        x, y = random.uniform(0, scene.width), random.uniform(0, scene.height)
        if scene.has_room(x, y, size):
            return x, y
    return None


def empty_scene(random: Random) -> Scene:
    """A background and a format, no shapes yet."""
    width, height = random.choices(((1.0, 1.0), (1.34, 1.0), (1.0, 1.34)), (6, 1, 1))[0]
    pens: tuple[Pen, ...] = ("none", "black", "dark")
    pen = random.choices(pens, (6, 3, 2))[0]
    background = random.choices([rgb for rgb, _ in _BACKGROUNDS], [weight for _, weight in _BACKGROUNDS])[0]
    if max(background) < 64 and pen == "black":  # a black outline that cannot be seen would make shapes smaller
        pen = "none"
    return Scene(width, height, background, (), pen)


def draw(scene: Scene, side: int, oversample: int = 3) -> Image.Image:
    """RGB image whose shorter side is ``side`` pixels. ``oversample`` 1 leaves jagged edges, more smooths them."""
    scale = side * oversample
    width, height = round(scene.width * scale), round(scene.height * scale)
    image = Image.new("RGB", (width, height), scene.background)
    for shape in scene.shapes:
        _draw_shape(image, shape, scene.pen, scale)
    if oversample == 1:
        return image
    return image.resize((round(scene.width * side), round(scene.height * side)), Image.Resampling.BOX)


def _draw_shape(image: Image.Image, shape: Shape, pen: Pen, scale: float) -> None:
    points = [(x * scale, y * scale) for x, y in shape.outline()]
    line = {"none": None, "black": (0, 0, 0), "dark": tuple(c // 2 for c in shape.rgb)}[pen]
    thickness = max(1, round(0.012 * scale)) if line else 0
    if shape.half is None:
        ImageDraw.Draw(image).polygon(points, fill=shape.rgb, outline=line, width=thickness)
        return
    whole = image.copy()
    ImageDraw.Draw(whole).polygon(points, fill=shape.second or shape.rgb, outline=line, width=thickness)
    if shape.second is not None:
        ImageDraw.Draw(image).polygon(points, fill=shape.rgb, outline=line, width=thickness)
    x, y = round(shape.x * scale), round(shape.y * scale)
    keep = {
        "left": (0, 0, x, image.height),
        "right": (x, 0, image.width, image.height),
        "top": (0, 0, image.width, y),
        "bottom": (0, y, image.width, image.height),
    }[shape.half]
    image.paste(whole.crop(keep), keep[:2])
