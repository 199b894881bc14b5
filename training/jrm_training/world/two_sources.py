"""The task of two source images: "put the circle of the second image beside the square of the first"."""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random

from .scene import LARGEST, SMALLEST, Scene, Shape, empty_scene, place
from .tasks import Palette, Task, new_shape, styled

MOST_IN_SECOND = 3
FAR = 0.3  # the smallest gap between shapes that nobody would call beside each other: those that are have 0.2 at most
_SENTENCES = (
    "put the {object} of the second image beside the {anchor} of the first",
    "put the {object} from the second image next to the {anchor} of the first image",
    "add the {object} of image 2 beside the {anchor} in image 1",
    "take the {object} of the second picture and place it next to the {anchor} of the first",
    "the {object} of the second image should be beside the {anchor} of the first",
)


def sample_task(random: Random, *, shapes: tuple[int, int], palette: Palette, featured: Palette | None = None) -> Task:
    """Two scenes, and one shape of the second that belongs beside one of the first; arguments as ``tasks`` has them.

    The first scene has at least one shape, and none like the one that is brought, which ``featured`` is about.
    """
    while True:  # a crowded scene may have no room beside the anchor: draw again
        task = _try_task(random, shapes, palette, featured or palette)
        if task is not None:
            return task


def gap(shape: Shape, other: Shape) -> float:
    """How far two shapes are from touching, if both were circles."""
    return math.hypot(shape.x - other.x, shape.y - other.y) - shape.size - other.size


def far_from(scene: Scene, shape: Shape, anchor: Shape, random: Random) -> Shape | None:
    """The shape in a free place of the scene that nobody would call beside the anchor; None when none was found."""
    for _ in range(20):
        spot = place(scene, shape.size, random)
        moved = spot and replace(shape, x=spot[0], y=spot[1])
        if moved and gap(moved, anchor) >= FAR:
            return moved
    return None


def _try_task(random: Random, shapes: tuple[int, int], palette: Palette, featured: Palette) -> Task | None:
    combination = random.choice(sorted(featured))
    others = sorted(palette - {combination})
    first = _filled(random.sample(others, max(1, random.randint(*shapes))), random)
    second = _filled([combination, *random.sample(others, random.randrange(MOST_IN_SECOND))], random)
    if first is None or second is None:
        return None
    brought, anchor = second.shapes[0], random.choice(first.shapes)
    goal = _beside(first, brought, anchor, random)
    if goal is None:
        return None
    shuffled = tuple(random.sample(second.shapes, len(second.shapes)))  # the order says nothing about what is brought
    text = random.choice(_SENTENCES).format(object=_name(brought, second, random), anchor=_name(anchor, first, random))
    return Task(
        first, "bring", None, goal, None, styled(text, random), second=replace(second, shapes=shuffled), anchor=anchor
    )


def _filled(combinations: list[tuple[str, str]], random: Random) -> Scene | None:
    scene = empty_scene(random)
    for combination in combinations:
        size = random.uniform(SMALLEST, LARGEST)
        spot = place(scene, size, random)
        if spot is None:
            return None
        scene = scene.plus(new_shape(combination, *spot, size, random))
    return scene


def _beside(scene: Scene, shape: Shape, anchor: Shape, random: Random) -> Shape | None:
    """The shape in a free place to the left or right of the anchor, with nothing nearer to it."""
    for side in random.sample((-1, 1), 2):
        for _ in range(12):
            size = random.uniform(SMALLEST, LARGEST)
            reach = (size + anchor.size) * 1.3 + random.uniform(0.03, 0.08)  # Scene.has_room asks for so much
            x, y = anchor.x + side * reach, anchor.y + random.uniform(-0.04, 0.04)
            placed = replace(shape, x=x, y=y, size=size)
            nearest = min(scene.shapes, key=lambda other: gap(placed, other))
            if scene.has_room(x, y, size) and nearest is anchor:
                return placed
    return None


def _name(shape: Shape, scene: Scene, random: Random) -> str:
    """What it is called: its kind alone, if that says which one, or colour and kind."""
    alone = sum(other.kind == shape.kind for other in scene.shapes) == 1
    return shape.kind if alone and random.random() < 0.6 else shape.label
