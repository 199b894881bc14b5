"""Shapes in a picture: regions that differ from the background, with their colours and the outline that fits them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jrm_training.world.scene import COLOURS, KINDS, RGB, Shape

Picture = NDArray[np.uint8]
"""[side, side, 3], RGB."""
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

UNNAMED = "unnamed"
"""A colour that is none of the world's."""

_SMALLEST_AREA = 0.003  # of the picture: 12 pixels of 64 x 64. Half of the smallest triangle has 0.0075
_CONTRAST = 55.0  # Euclidean distance from the background in RGB, after smoothing; the palest shape has 80
_SHARE = 0.2  # of a shape's pixels: less of a second colour is its edge
_LIKENESS = 0.8  # intersection over union with the outline of a kind; halves of shapes have less
_SAME_COLOUR = 75.0  # Euclidean distance; shades of a name differ by up to 21 from its values, and blur adds to it
_SAME_PLACE = 0.05  # in units of the side; a move "a little" is 0.09 at least
_TURNS = (-20, -10, 0, 10, 20)  # degrees
_PALETTE = np.array([rgb for values in COLOURS.values() for rgb in values], float)
_NAMES = np.array([name for name, values in COLOURS.items() for _ in values])


@dataclass(frozen=True, slots=True)
class Found:
    """A region that is not background. Lengths in units of the side, as those of ``Shape``; ``area`` in its square.

    ``colours`` are the names that a fifth of its pixels or more have, the most frequent first, and ``values`` [N, 3]
    what they look like; ``kind`` is None where no outline fits.
    """

    colours: tuple[str, ...]
    values: Floats
    kind: str | None
    x: float
    y: float
    area: float
    mask: Mask

    def is_like(self, shape: Shape) -> bool:
        """Whether it is what the shape's label says, and nothing else, wherever it is."""
        return self.colours == (shape.colour,) and self.kind == shape.kind

    def is_at(self, shape: Shape) -> bool:
        """Whether it is where the shape is, and as large."""
        x, y = centroid(shape)
        near = math.hypot(self.x - x, self.y - y) <= _SAME_PLACE
        return near and self.is_as_large_as(area(shape), area(shape))

    def is_as_large_as(self, smallest: float, largest: float) -> bool:
        """Whether its area lies between two areas, or nearly so."""
        return 0.7 * smallest <= self.area <= 1.4 * largest


def find_shapes(picture: Picture, background: RGB) -> list[Found]:
    """Every region of some size that differs from the background, from left to right."""
    smooth = _smooth(picture.astype(float))
    regions = _regions(np.linalg.norm(smooth - background, axis=2) > _CONTRAST)
    large = [region for region in regions if region.mean() >= _SMALLEST_AREA]
    found = [_described(region, smooth, np.asarray(background, float)) for region in large]
    return sorted(found, key=lambda shape: shape.x)


def area(shape: Shape) -> float:
    """Of a whole shape."""
    return {"circle": math.pi, "square": 4.0, "triangle": 1.85}[shape.kind] * shape.size**2


def centroid(shape: Shape) -> tuple[float, float]:
    """Where its pixels' mean is: not (x, y) for a triangle, which stands on more than it ends in."""
    if shape.kind != "triangle":
        return shape.x, shape.y
    drop, turn = shape.size * 0.7 / 3, math.radians(shape.turn)
    return shape.x - drop * math.sin(turn), shape.y + drop * math.cos(turn)


def eroded(mask: Mask) -> Mask:
    """Without the pixels whose four neighbours are not all in it; what lies outside of the picture counts as in."""
    padded = np.pad(mask, 1, constant_values=True)
    eroded: Mask = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return eroded


def dilated(mask: Mask, times: int) -> Mask:
    """With every pixel that is within so many steps of it."""
    for _ in range(times):
        mask = ~eroded(~mask)
    return mask


def _described(region: Mask, smooth: Floats, background: Floats) -> Found:
    side = region.shape[0]
    core = eroded(eroded(region))
    core = core if core.sum() >= 9 else region
    inner = smooth[core]
    distances = np.linalg.norm(inner[:, None] - _PALETTE, axis=2)
    names = np.where(distances.min(axis=1) <= _SAME_COLOUR, _NAMES[distances.argmin(axis=1)], UNNAMED)
    counts = {str(name): int((names == name).sum()) for name in np.unique(names)}
    colours = sorted((name for name in counts if counts[name] >= _SHARE * len(names)), key=lambda name: -counts[name])
    # The outline is where a pixel is as far from the background as from the shape's own colours.
    own = np.array([np.median(inner[names == name], axis=0) for name in colours])
    to_own = np.linalg.norm(smooth[:, :, None] - own, axis=3).min(axis=2)
    region = region & (to_own < np.linalg.norm(smooth - background, axis=2))
    ys, xs = np.nonzero(region)
    x, y, size = (xs.mean() + 0.5) / side, (ys.mean() + 0.5) / side, region.mean()
    return Found(tuple(colours), own, _kind(region, x, y, size), float(x), float(y), float(size), region)


def _kind(region: Mask, x: float, y: float, covered: float) -> str | None:
    """The kind whose outline, with the region's centroid and area, has most in common with it."""
    side = region.shape[0]
    best, likeness = None, _LIKENESS
    for kind in KINDS:
        for turn in (0,) if kind == "circle" else _TURNS:
            size = math.sqrt(covered / area(Shape(kind, "", (0, 0, 0), 0, 0, 1)))
            at_origin = centroid(Shape(kind, "", (0, 0, 0), 0, 0, size, turn))
            drawn = inside(Shape(kind, "", (0, 0, 0), x - at_origin[0], y - at_origin[1], size, turn), side)
            union = (drawn | region).sum()
            overlap = (drawn & region).sum() / union if union else 0.0
            if overlap > likeness:
                best, likeness = kind, overlap
    return best


def inside(shape: Shape, side: int) -> Mask:
    """The pixels [side, side] whose centres lie within a shape's outline, which is convex."""
    centres = (np.arange(side) + 0.5) / side
    px, py = np.meshgrid(centres, centres)
    if shape.kind == "circle":
        disc: Mask = (px - shape.x) ** 2 + (py - shape.y) ** 2 <= shape.size**2
        return disc
    corners = shape.outline()
    mask = np.ones(px.shape, bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        mask &= (bx - ax) * (py - ay) - (by - ay) * (px - ax) >= 0
    return mask


def _regions(mask: Mask) -> list[Mask]:
    """Connected regions: each pixel takes the largest number among its neighbours until nothing changes."""
    numbers = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        padded = np.pad(numbers, 1)
        around = np.max(
            [padded[1:-1, 1:-1], padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]], axis=0
        )
        grown = np.where(mask, around, 0)
        if (grown == numbers).all():
            return [numbers == number for number in np.unique(numbers) if number]
        numbers = grown


def _smooth(pixels: Floats) -> Floats:
    """The mean of 3 x 3 pixels."""
    padded = np.pad(pixels, ((1, 1), (1, 1), (0, 0)), mode="edge")
    height, width = pixels.shape[:2]
    shifted = [padded[dy : dy + height, dx : dx + width] for dy in range(3) for dx in range(3)]
    mean: Floats = np.mean(shifted, axis=0)
    return mean
