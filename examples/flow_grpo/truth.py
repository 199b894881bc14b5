"""What an edited picture really shows: the labels' own rules, applied to pixels. It knows nothing of any reward.

The world knows what was asked for and what stood where (``Task``), so a picture can be read back: its shapes are
compared with those that should be there. ``following`` is appendix A.1's scale as ``jrm_training.world`` applies it;
``quality`` measures two of its visual flaws, noise and blur, on the scale of ``world.flaws.BANDS``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from jrm_training.world.flaws import BANDS
from jrm_training.world.scene import LARGEST, RGB, SMALLEST, Shape
from jrm_training.world.tasks import Task

from .shapes import Floats, Found, Picture, area, centroid, dilated, eroded, find_shapes, inside

_FAR_ENOUGH = 0.2  # in units of the side: a move that is right is 0.28 at least, one that is half right 0.13 at most
_A_LITTLE = 0.05
_SAME_BACKGROUND = 12.0  # levels
_GONE = 25.0  # Euclidean distance in RGB: more is left of a shape than cannot be seen
_PLAIN = 30.0  # levels: what varies more is of several colours, or too noisy to tell an edge in
_SHARP = 0.3  # pixels: the radius of an edge that is as sharp as pixels allow


def scores(task: Task, picture: Picture) -> tuple[float, float]:
    """(following, quality), each from 0 to 1."""
    return (following(task, picture) - 1) / 3, (quality(task, picture) - 1) / 3


def following(task: Task, picture: Picture) -> int:
    """How well the picture follows the instruction, 1 to 4, by the rules of ``world.edits``.

    4: right; 3: half done; 2: a wrong result, or more changed than asked; 1: the wrong object, or nothing changed.
    """
    found = find_shapes(picture, task.scene.background)
    others = [shape for number, shape in enumerate(task.scene.shapes) if number != task.target]
    matched = [_match(shape, found) for shape in others]
    rest = [one for one in found if not any(one is other for other in matched)]
    verdict, used = _verdict(task, rest, picture)
    if verdict == 1:  # the target is as it was, whatever else there is
        return 1
    strangers = [one for one in rest if one is not used]
    untouched = all(matched) and not strangers and _same_background(picture, task.scene.background)
    return verdict if untouched else 2


def quality(task: Task, picture: Picture) -> float:
    """Visual quality, 1 to 4, not rounded: that of the worse of noise and blur.

    1 for a picture of nothing where something should be: what is not there is not sharp.
    """
    wanted = len(task.scene.shapes) - (task.verb == "remove")
    found = find_shapes(picture, task.scene.background)
    if wanted > 0 and not found:
        return 1.0
    noise, blur = _measure(picture, found, task.scene.background)
    return min(_grade("noise", noise), _grade("blur", blur))


def measure(picture: Picture, background: RGB) -> tuple[float, float]:
    """(noise, blur): standard deviation in plain areas, in 8-bit levels, and radius in 64ths of the side.

    As ``world.flaws`` makes them. Where there is nothing but background, blur cannot be seen, and is 0.
    """
    return _measure(picture, find_shapes(picture, background), background)


def _measure(picture: Picture, found: Sequence[Found], background: RGB) -> tuple[float, float]:
    pixels = picture.astype(float)
    outside = np.ones(pixels.shape[:2], bool)
    for one in found:
        outside &= ~dilated(one.mask, 3)
    outside = eroded(outside)
    residuals = [pixels[outside] - np.median(pixels[outside], axis=0)] if outside.any() else []
    residuals += [_variation(pixels[eroded(eroded(one.mask))], one.values) for one in found]
    noise = float(np.sqrt(np.mean(np.concatenate(residuals) ** 2))) if residuals else 0.0
    widths = [width for one in found if (width := _edge_width(pixels, one, background)) is not None]
    unit = picture.shape[0] / 64
    return noise, (float(np.median(widths)) / unit if widths else 0.0)


def _variation(pixels: Floats, colours: Floats) -> Floats:
    """How far each pixel [N, 3] is from the nearest of a shape's own colours."""
    differences = pixels[:, None] - colours
    nearest = np.linalg.norm(differences, axis=2).argmin(axis=1)
    chosen: Floats = differences[np.arange(len(pixels)), nearest]
    return chosen


def _match(shape: Shape, found: Sequence[Found]) -> Found | None:
    return next((one for one in found if one.is_like(shape) and one.is_at(shape)), None)


def _same_background(picture: Picture, background: RGB) -> bool:
    """The commonest colour is the background's. Shapes cover far less than half of a scene."""
    return bool(np.abs(np.median(picture, axis=(0, 1)) - background).max() <= _SAME_BACKGROUND)


def _verdict(task: Task, rest: Sequence[Found], picture: Picture) -> tuple[int, Found | None]:
    """What became of the target, 1 to 4, and the region that it is now; ``rest`` are those that are no other shape."""
    if task.target is None:
        return _added(task, rest)
    there = _match(task.old, rest)
    if there is not None:
        return 1, there
    match task.verb:
        case "remove":
            return _removed(task, rest, picture)
        case "move":
            return _moved(task, rest)
        case _:
            return _changed(task, rest)


def _removed(task: Task, rest: Sequence[Found], picture: Picture) -> tuple[int, Found | None]:
    x, y = centroid(task.old)
    left = next((one for one in rest if math.hypot(one.x - x, one.y - y) <= 1.2 * task.old.size), None)
    if left is not None:
        return (3 if task.old.colour in left.colours else 2), left
    ghost = picture[inside(task.old, len(picture))].astype(float).mean(axis=0)
    return (4 if np.linalg.norm(ghost - task.scene.background) <= _GONE else 3), None


def _changed(task: Task, rest: Sequence[Found]) -> tuple[int, Found | None]:
    """Recoloured or replaced, where it stands."""
    goal, old = task.goal, task.old
    assert goal is not None
    x, y = centroid(old)
    now = min(rest, key=lambda one: math.hypot(one.x - x, one.y - y), default=None)
    if now is None or math.hypot(now.x - x, now.y - y) > old.size:
        return 2, None  # it is gone
    if now.is_like(goal):
        return (4 if now.is_at(goal) else 2), now
    if task.verb == "recolour":
        return (3 if goal.colour in now.colours else 2), now
    colours_differ = goal.colour != old.colour
    one_wish_of_two = now.colours == (goal.colour,) or (now.kind == goal.kind and now.colours == (old.colour,))
    return (3 if colours_differ and one_wish_of_two else 2), now


def _added(task: Task, rest: Sequence[Found]) -> tuple[int, Found | None]:
    goal = task.goal
    assert goal is not None
    if not rest:
        return 1, None
    like = next((one for one in rest if one.is_like(goal)), None)
    if like is not None:
        unit = area(goal) / goal.size**2
        return (4 if like.is_as_large_as(unit * SMALLEST**2, unit * LARGEST**2) else 3), like
    best = max(rest, key=lambda one: (one.colours[:1] == (goal.colour,), one.kind == goal.kind))
    if best.colours == (goal.colour,) and best.kind is None:
        return 3, best  # half of it
    wrong_in_all = goal.colour not in best.colours and best.kind != goal.kind
    return (1 if wrong_in_all else 2), best


def _moved(task: Task, rest: Sequence[Found]) -> tuple[int, Found | None]:
    now = next((one for one in rest if one.is_like(task.old)), None)
    if now is None or not now.is_as_large_as(area(task.old), area(task.old)):
        return 2, now
    x, y = centroid(task.old)
    assert task.direction is not None
    dx, dy = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}[task.direction]
    along = (now.x - x) * dx + (now.y - y) * dy
    across = abs((now.x - x) * dy) + abs((now.y - y) * dx)
    if across > 0.5 * max(along, 0.1):
        return 2, now
    return (4 if along >= _FAR_ENOUGH else 3 if along > _A_LITTLE else 2), now


def _edge_width(pixels: Floats, one: Found, background: RGB) -> float | None:
    """Radius of the Gaussian that makes an edge as wide as this shape's, in pixels; None where it is not plain."""
    shown = pixels[one.mask]
    order = np.linalg.norm(shown - background, axis=1).argsort()
    inner = shown[order[-max(9, len(order) // 4) :]]  # what differs most from the background is not its edge
    if inner.std(axis=0).max() > _PLAIN:
        return None
    colour = np.median(inner, axis=0)
    contrast = colour - np.asarray(background, float)
    near = dilated(one.mask, 4)
    share = ((pixels - background) @ contrast / (contrast @ contrast))[near].clip(0, 1)
    # Along an edge of length L blurred with radius r the integral of s(1 - s) is L r / sqrt(pi).
    between = (share * (1 - share)).sum()
    perimeter = {"circle": 2 * math.sqrt(math.pi), "square": 4.0, "triangle": 4.54}.get(one.kind or "circle", 4.0)
    radius = math.sqrt(math.pi) * between / (perimeter * math.sqrt(share.sum()))
    return math.sqrt(max(0.0, radius**2 - _SHARP**2))


def _grade(kind: str, strength: float) -> float:
    """A label, and what lies between: 4 up to half of what is called slight, 1 from the middle of severe on."""
    bands = BANDS[kind]
    middles = [sum(bands[label]) / 2 for label in (3, 2, 1)]
    return float(np.interp(strength, [middles[0] / 2, *middles], [4, 3, 2, 1]))
