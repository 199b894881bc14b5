"""Edits of known quality: what an editing model might make of a task, from a correct edit to no change at all.

Instruction following is labelled as appendix A.1 scores it: 4 right; 3 partly right; 2 the wrong colour, kind or place,
or more changed than asked; 1 the wrong object, or nothing changed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from .scene import COLOURS, KINDS, LARGEST, SMALLEST, Half, Scene, Shape, place, shade, turn
from .tasks import Palette, Task, moved, new_shape
from .two_sources import far_from

LABELS = {
    "right": 4,
    "partly_right": 3,
    "wrong_result": 2,
    "over_edited": 2,
    "wrong_object": 1,
    "unchanged": 1,
}
_HALVES: tuple[Half, ...] = ("left", "right", "top", "bottom")


@dataclass(frozen=True, slots=True)
class Change:
    """One shape before and after, None where it does not exist. Critiques describe changes."""

    before: Shape | None
    after: Shape | None

    @property
    def seen(self) -> Shape:
        """The shape at whose place in the edited image the change is seen."""
        shape = self.after or self.before
        assert shape is not None
        return shape


@dataclass(frozen=True, slots=True)
class Edit:
    """An edited scene, its quality (a key of LABELS) and every change from the source, the target's first."""

    scene: Scene
    quality: str
    changes: tuple[Change, ...]

    @property
    def label(self) -> int:
        """Instruction following, 1 to 4."""
        return LABELS[self.quality]


def edit(task: Task, quality: str, palette: Palette, random: Random) -> Edit | None:
    """An edit of this quality, or None where the task has none (the wrong object in a scene of one)."""
    return _MAKERS[quality](task, palette, random)


def _apply(task: Task, quality: str, *changes: tuple[int | None, Shape | None]) -> Edit:
    """Apply changes: (index of the shape, or None for a new one; the new shape, or None to remove it)."""
    shapes: list[Shape | None] = list(task.scene.shapes)
    made = []
    for index, after in changes:
        made.append(Change(None if index is None else task.scene.shapes[index], after))
        if index is None:
            shapes.append(after)
        else:
            shapes[index] = after
    scene = replace(task.scene, shapes=tuple(shape for shape in shapes if shape is not None))
    return Edit(scene, quality, tuple(made))


def _right(task: Task, _palette: Palette, _random: Random) -> Edit:
    return _apply(task, "right", (task.target, task.goal))


def _unchanged(task: Task, _palette: Palette, _random: Random) -> Edit:
    return _apply(task, "unchanged")


def _partly(task: Task, palette: Palette, random: Random) -> Edit | None:
    """Half recoloured, half erased, half drawn, one wish of two granted, too short a way, or not beside the anchor."""
    half = random.choice(_HALVES)
    kind = task.goal.kind if task.goal is not None else task.old.kind
    if kind == "triangle" and (half == "top" or task.target is None):  # its other halves are triangles themselves
        half = "bottom"
    after: Shape | None
    match task.verb:
        case "recolour":
            assert task.goal is not None
            after = replace(task.old, half=half, second=task.goal.rgb)
        case "remove":
            after = replace(task.old, half=half)
        case "bring" if random.random() < 0.5:
            assert task.goal is not None
            assert task.anchor is not None
            after = far_from(task.scene, task.goal, task.anchor, random)
            if after is None:
                return None
        case "add" | "bring":
            assert task.goal is not None
            after = replace(task.goal, half=half)
        case "replace":
            assert task.goal is not None
            if task.goal.colour == task.old.colour:
                return None
            one, other = (task.goal.kind, task.old.colour), (task.old.kind, task.goal.colour)
            allowed = [wish for wish in (one, other) if wish[::-1] in palette]
            if not allowed:
                return None
            kind, colour = random.choice(allowed)
            rgb = task.old.rgb if colour == task.old.colour else task.goal.rgb
            after = replace(task.goal, kind=kind, colour=colour, rgb=rgb)
        case "move":
            assert task.target is not None
            after, _ = moved(task.scene, task.target, random, reach=(0.09, 0.13), direction=task.direction)
            if after is None:
                return None
    return _apply(task, "partly_right", (task.target, after))


def _wrong_result(task: Task, palette: Palette, random: Random) -> Edit | None:
    """The right object ends in the wrong colour, as the wrong kind, or in the wrong place."""
    if task.verb == "remove":
        return None
    assert task.goal is not None
    goal = task.goal
    if task.verb == "move":
        assert task.target is not None
        ways = [way for way in ("left", "right", "up", "down") if way != task.direction]
        random.shuffle(ways)
        for way in ways:
            after, _ = moved(task.scene, task.target, random, direction=way)
            if after is not None:
                return _apply(task, "wrong_result", (task.target, after))
        return None
    old = None if task.target is None else task.old
    taken = {goal.colour, goal.kind} if old is None else {goal.colour, goal.kind, old.colour, old.kind}
    colours = [colour for colour in COLOURS if colour not in taken and (colour, goal.kind) in palette]
    kinds = [kind for kind in KINDS if kind not in taken and (goal.colour, kind) in palette]
    if task.verb != "recolour" and kinds and random.random() < 0.4:
        kind = random.choice(kinds)
        return _apply(task, "wrong_result", (task.target, replace(goal, kind=kind, turn=turn(kind, random))))
    colour = random.choice(colours)
    return _apply(task, "wrong_result", (task.target, replace(goal, colour=colour, rgb=shade(colour, random))))


def _wrong_object(task: Task, palette: Palette, random: Random) -> Edit | None:
    """What was asked for happens to another shape; for add and bring another one appears, alike in nothing.

    For bring it is one of the second image, if that has such a shape.
    """
    if task.verb in ("add", "bring"):
        assert task.goal is not None
        options = [(c, k) for c, k in sorted(palette) if c != task.goal.colour and k != task.goal.kind]
        in_second = {(shape.colour, shape.kind) for shape in (task.second.shapes if task.second else ())}
        options = [option for option in options if option in in_second] or options
        other = new_shape(random.choice(options), task.goal.x, task.goal.y, task.goal.size, random)
        return _apply(task, "wrong_object", (None, other))
    others = [n for n in range(len(task.scene.shapes)) if n != task.target]
    random.shuffle(others)
    for index in others:
        shape = task.scene.shapes[index]
        if task.verb == "remove":
            return _apply(task, "wrong_object", (index, None))
        assert task.goal is not None
        if task.verb == "move":
            after, _ = moved(task.scene, index, random, direction=task.direction)
            if after is not None:
                return _apply(task, "wrong_object", (index, after))
            continue
        colour = task.goal.colour
        kind = shape.kind if task.verb == "recolour" else task.goal.kind
        if (colour, kind) in palette and (colour, kind) != (shape.colour, shape.kind):
            after = replace(shape, kind=kind, colour=colour, rgb=task.goal.rgb)
            return _apply(task, "wrong_object", (index, after))
    return None


def _over_edited(task: Task, palette: Palette, random: Random) -> Edit | None:
    """What was asked for, and something else besides: another shape recoloured, removed or added."""
    done = _right(task, palette, random).scene
    # Neither a second goal nor what was just taken away: that would be another edit, or undo the first.
    involved = {(shape.colour, shape.kind) for shape in (task.goal, task.target is not None and task.old) if shape}
    others = [n for n in range(len(task.scene.shapes)) if n != task.target]
    if others and random.random() < 0.75:
        index = random.choice(others)
        shape = task.scene.shapes[index]
        colours = [
            c for c in COLOURS if c != shape.colour and (c, shape.kind) in palette and (c, shape.kind) not in involved
        ]
        colour = random.choice(colours)
        after = None if random.random() < 0.4 else replace(shape, colour=colour, rgb=shade(colour, random))
        return _apply(task, "over_edited", (task.target, task.goal), (index, after))
    size = random.uniform(SMALLEST, LARGEST)
    spot = place(done, size, random)
    if spot is None:
        return None
    extra = new_shape(random.choice(sorted(palette - involved)), *spot, size, random)
    return _apply(task, "over_edited", (task.target, task.goal), (None, extra))


_MAKERS: dict[str, Callable[[Task, Palette, Random], Edit | None]] = {
    "right": _right,
    "partly_right": _partly,
    "wrong_result": _wrong_result,
    "over_edited": _over_edited,
    "wrong_object": _wrong_object,
    "unchanged": _unchanged,
}
