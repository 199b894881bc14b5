"""What an edited picture really shows: the labels' own rules, applied to pixels. It knows nothing of any reward.

The world knows what was asked for and what stood where (``Task``), so a picture can be read back: shapes are found as
regions that differ from the background, named by their colour and by the outline that covers them best, and compared
with those that should be there. ``following`` is appendix A.1's scale as ``jrm_training.world`` applies it, ``quality``
measures two of its visual flaws, noise and blur, on the scale of ``world.flaws.BANDS``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jrm_training.world.flaws import BANDS
from jrm_training.world.scene import COLOURS, KINDS, RGB, Shape
from jrm_training.world.tasks import Task

Picture = NDArray[np.uint8]
"""[side, side, 3], RGB."""
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

_SMALLEST_AREA = 0.006  # of the picture: half of the smallest triangle has 0.0075
_CONTRAST = 55.0  # Euclidean distance from the background in RGB, after smoothing; the palest shape has over 100
_SHARE = 0.2  # of a shape's pixels: less of a second colour is its edge
_LIKENESS = 0.8  # intersection over union with the outline of a kind; halves of shapes have less
_SAME_PLACE = 0.05  # in units of the side; a move "a little" is 0.09 at least
_FAR_ENOUGH = 0.2  # a move that is right is 0.28 at least, one that is half right 0.13 at most
_TURNS = (-20, -10, 0, 10, 20)  # degrees
_PALETTE = np.array([rgb for values in COLOURS.values() for rgb in values], float)
_NAMES = np.array([name for name, values in COLOURS.items() for _ in values])


@dataclass(frozen=True, slots=True)
class Found:
    """A region that is not background. Lengths in units of the side, as those of ``Shape``; ``area`` in its square.

    ``colours`` are the names that a fifth of its pixels or more have, the most frequent first; ``kind`` is None where
    no outline fits.
    """

    colours: tuple[str, ...]
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
        x, y = _centroid(shape)
        near = math.hypot(self.x - x, self.y - y) <= _SAME_PLACE
        return near and 0.7 <= self.area / _area(shape) <= 1.4


def find_shapes(picture: Picture, background: RGB) -> list[Found]:
    """Every region of some size that differs from the background, from left to right."""
    smooth = _smooth(picture.astype(float))
    regions = _regions(np.linalg.norm(smooth - background, axis=2) > _CONTRAST)
    large = [region for region in regions if region.mean() >= _SMALLEST_AREA]
    found = [_described(region, smooth, np.asarray(background, float)) for region in large]
    return sorted(found, key=lambda shape: shape.x)


def following(task: Task, picture: Picture) -> int:
    """How well the picture follows the instruction, 1 to 4, by the rules of ``world.edits``.

    4: right; 3: half done; 2: a wrong result, or more changed than asked; 1: the wrong object, or nothing changed.
    """
    found = find_shapes(picture, task.scene.background)
    others = [shape for number, shape in enumerate(task.scene.shapes) if number != task.target]
    rest = _without(found, [shape for shape in others if _matches(shape, found)])
    untouched = all(_matches(shape, found) for shape in others)
    verdict, used = _verdict(task, rest)
    strangers = [one for one in rest if one is not used]
    if verdict == 4:
        return 4 if untouched and not strangers else 2
    if verdict == 1:  # the target is as it was
        return 1
    return verdict if untouched and not strangers else min(verdict, 2)


def quality(picture: Picture, background: RGB) -> float:
    """Visual quality, 1 to 4, not rounded: that of the worse of noise and blur."""
    noise, blur = flaws(picture, background)
    return min(_grade("noise", noise), _grade("blur", blur))


def scores(task: Task, picture: Picture) -> tuple[float, float]:
    """(following, quality), each from 0 to 1."""
    return (following(task, picture) - 1) / 3, (quality(picture, task.scene.background) - 1) / 3


def flaws(picture: Picture, background: RGB) -> tuple[float, float]:
    """(noise, blur): standard deviation in plain areas, in 8-bit levels, and radius in 64ths of the side.

    As ``world.flaws`` makes them. Where there is nothing but background, blur cannot be seen, and is 0.
    """
    pixels = picture.astype(float)
    shapes = find_shapes(picture, background)
    plain = (
        _eroded(~np.any([_dilated(one.mask, 3) for one in shapes], axis=0))
        if shapes
        else np.ones(pixels.shape[:2], bool)
    )
    residuals = [pixels[plain] - np.median(pixels[plain], axis=0)] if plain.any() else []
    for one in shapes:
        inside = _eroded(_eroded(one.mask)) if len(one.colours) == 1 else np.zeros_like(one.mask)
        if inside.sum() >= 9:
            residuals.append(pixels[inside] - np.median(pixels[inside], axis=0))
    noise = float(np.sqrt(np.mean(np.concatenate(residuals) ** 2))) if residuals else 0.0
    widths = [width for one in shapes if (width := _edge_width(pixels, one, background)) is not None]
    unit = picture.shape[0] / 64
    return noise, (float(np.median(widths)) / unit if widths else 0.0)


def _matches(shape: Shape, found: Sequence[Found]) -> Found | None:
    return next((one for one in found if one.is_like(shape) and one.is_at(shape)), None)


def _without(found: Sequence[Found], shapes: Sequence[Shape]) -> list[Found]:
    matched = [_matches(shape, found) for shape in shapes]
    return [one for one in found if not any(one is other for other in matched)]


def _verdict(task: Task, rest: Sequence[Found]) -> tuple[int, Found | None]:
    """What became of the target, 1 to 4, and the region that it is now; ``rest`` are those that are no other shape."""
    if task.target is None:
        return _added(task, rest)
    old = task.old
    there = _matches(old, rest)
    if there is not None:
        return 1, there
    if task.verb == "remove":
        x, y = _centroid(old)
        left = next((one for one in rest if math.hypot(one.x - x, one.y - y) <= 1.2 * old.size), None)
        return (4, None) if left is None else (3 if old.colour in left.colours else 2, left)
    assert task.goal is not None
    if task.verb == "move":
        return _moved(task, rest)
    x, y = _centroid(old)
    now = min(rest, key=lambda one: math.hypot(one.x - x, one.y - y), default=None)
    if now is None or math.hypot(now.x - x, now.y - y) > old.size:
        return 2, None  # it is gone
    if now.is_like(task.goal):
        return (4 if 0.6 <= now.area / _area(task.goal) <= 1.6 else 3), now
    if task.verb == "recolour":
        return (3 if task.goal.colour in now.colours else 2), now
    half = (now.colours == (task.goal.colour,) and task.goal.colour != old.colour) or (
        now.kind == task.goal.kind and task.goal.colour != old.colour and now.colours == (old.colour,)
    )
    return (3 if half else 2), now


def _added(task: Task, rest: Sequence[Found]) -> tuple[int, Found | None]:
    assert task.goal is not None
    if not rest:
        return 1, None
    like = next((one for one in rest if one.is_like(task.goal)), None)
    if like is not None:
        return 4, like
    best = max(rest, key=lambda one: (one.colours[:1] == (task.goal.colour,), one.kind == task.goal.kind))  # type: ignore[union-attr]
    if best.colours == (task.goal.colour,) and best.kind is None:
        return 3, best  # half of it
    wrong_in_all = task.goal.colour not in best.colours and best.kind != task.goal.kind
    return (1 if wrong_in_all else 2), best


def _moved(task: Task, rest: Sequence[Found]) -> tuple[int, Found | None]:
    now = next((one for one in rest if one.is_like(task.old)), None)
    if now is None:
        return 2, None
    x, y = _centroid(task.old)
    assert task.direction is not None
    dx, dy = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}[task.direction]
    along = (now.x - x) * dx + (now.y - y) * dy
    across = abs((now.x - x) * dy) + abs((now.y - y) * dx)
    if across > 0.5 * max(along, 0.1):
        return 2, now
    return (4 if along >= _FAR_ENOUGH else 3 if along > _SAME_PLACE else 2), now


def _area(shape: Shape) -> float:
    return {"circle": math.pi, "square": 4.0, "triangle": 1.85}[shape.kind] * shape.size**2


def _centroid(shape: Shape) -> tuple[float, float]:
    """Where its pixels' mean is: not (x, y) for a triangle, which stands on more than it ends in."""
    if shape.kind != "triangle":
        return shape.x, shape.y
    drop, turn = shape.size * 0.7 / 3, math.radians(shape.turn)
    return shape.x - drop * math.sin(turn), shape.y + drop * math.cos(turn)


def _described(region: Mask, smooth: Floats, background: Floats) -> Found:
    side = region.shape[0]
    core = _eroded(_eroded(region))
    core = core if core.sum() >= 9 else region
    inner = smooth[core]
    names = _NAMES[np.linalg.norm(inner[:, None] - _PALETTE, axis=2).argmin(axis=1)]
    counts = {str(name): int((names == name).sum()) for name in np.unique(names)}
    colours = sorted((name for name in counts if counts[name] >= _SHARE * len(names)), key=lambda name: -counts[name])
    # The outline is where a pixel is as far from the background as from the shape's own colours.
    own = np.array([np.median(inner[names == name], axis=0) for name in colours])
    to_own = np.linalg.norm(smooth[:, :, None] - own, axis=3).min(axis=2)
    region = region & (to_own < np.linalg.norm(smooth - background, axis=2))
    ys, xs = np.nonzero(region)
    x, y, area = (xs.mean() + 0.5) / side, (ys.mean() + 0.5) / side, region.mean()
    return Found(tuple(colours), _kind(region, x, y, area), float(x), float(y), float(area), region)


def _kind(region: Mask, x: float, y: float, area: float) -> str | None:
    """The kind whose outline, with the region's centroid and area, has most in common with it."""
    side = region.shape[0]
    best, likeness = None, _LIKENESS
    centres = (np.arange(side) + 0.5) / side
    px, py = np.meshgrid(centres, centres)
    for kind in KINDS:
        for turn in (0,) if kind == "circle" else _TURNS:
            size = math.sqrt(area / _area(Shape(kind, "", (0, 0, 0), 0, 0, 1)))
            at_origin = _centroid(Shape(kind, "", (0, 0, 0), 0, 0, size, turn))
            drawn = _inside(Shape(kind, "", (0, 0, 0), x - at_origin[0], y - at_origin[1], size, turn), px, py)
            union = (drawn | region).sum()
            overlap = (drawn & region).sum() / union if union else 0.0
            if overlap > likeness:
                best, likeness = kind, overlap
    return best


def _inside(shape: Shape, px: Floats, py: Floats) -> Mask:
    """Which of the points lie within its outline, a convex polygon."""
    if shape.kind == "circle":
        inside: Mask = (px - shape.x) ** 2 + (py - shape.y) ** 2 <= shape.size**2
        return inside
    corners = shape.outline()
    inside = np.ones(px.shape, bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        inside &= (bx - ax) * (py - ay) - (by - ay) * (px - ax) >= 0
    return inside


def _edge_width(pixels: Floats, one: Found, background: RGB) -> float | None:
    """Radius of the Gaussian that makes an edge as wide as this shape's, in pixels; None where it is not plain."""
    shown = pixels[one.mask]
    order = np.linalg.norm(shown - background, axis=1).argsort()
    inner = shown[order[-max(9, len(order) // 4) :]]  # what differs most from the background is not its edge
    if inner.std(axis=0).max() > _PLAIN:
        return None
    colour = np.median(inner, axis=0)
    contrast = colour - np.asarray(background, float)
    near = _dilated(one.mask, 4)
    share = ((pixels - background) @ contrast / (contrast @ contrast))[near].clip(0, 1)
    area = share.sum()
    # Along an edge of length L blurred with radius r the integral of s(1 - s) is L r / sqrt(pi).
    between = (share * (1 - share)).sum()
    perimeter = {"circle": 2 * math.sqrt(math.pi), "square": 4.0, "triangle": 4.54}.get(one.kind or "circle", 4.0)
    radius = math.sqrt(math.pi) * between / (perimeter * math.sqrt(area))
    return math.sqrt(max(0.0, radius**2 - _SHARP**2))


_PLAIN = 30.0  # levels: what varies more is of several colours, or too noisy to tell an edge in
_SHARP = 0.3  # pixels: the radius of an edge that is as sharp as pixels allow


def _grade(kind: str, strength: float) -> float:
    """A label, and what lies between: 4 up to half of what is called slight, 1 from the middle of severe on."""
    bands = BANDS[kind]
    middles = [sum(bands[label]) / 2 for label in (3, 2, 1)]
    return float(np.interp(strength, [middles[0] / 2, *middles], [4, 3, 2, 1]))


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


def _eroded(mask: Mask) -> Mask:
    """Without the pixels whose four neighbours are not all in it; what lies outside of the picture counts as in."""
    padded = np.pad(mask, 1, constant_values=True)
    eroded: Mask = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return eroded


def _dilated(mask: Mask, times: int) -> Mask:
    for _ in range(times):
        mask = ~_eroded(~mask)
    return mask
