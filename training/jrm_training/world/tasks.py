"""Tasks: what an edit should do to a scene, and the sentences that ask for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import Literal

from .scene import COLOURS, KINDS, LARGEST, SMALLEST, Scene, Shape, empty_scene, place, shade, turn

Verb = Literal["recolour", "add", "remove", "replace", "move", "bring"]
# Of one source image; "bring" is the task of two, see ``two_sources``.
VERBS: tuple[Verb, ...] = ("recolour", "add", "remove", "replace", "move")
Palette = frozenset[tuple[str, str]]  # (colour, kind) combinations

ALL: Palette = frozenset((colour, kind) for colour in COLOURS for kind in KINDS)
# Never shown in training, used in the "unseen" split: each colour and each kind is known, their combination is new.
HELD_OUT: Palette = frozenset({("purple", "circle"), ("green", "triangle"), ("orange", "square")})
SEEN: Palette = ALL - HELD_OUT

_DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
_SENTENCES: dict[Verb, tuple[str, ...]] = {
    "recolour": (
        "make the {old} {colour}",
        "change the colour of the {old} to {colour}",
        "change the color of the {old} to {colour}",
        "turn the {old} {colour}",
        "paint the {old} {colour}",
        "recolor the {old} to {colour}",
        "the {old} should be {colour}",
        "change the {old} to a {new}",
    ),
    "add": (
        "add a {new}",
        "put a {new} in the picture",
        "draw a {new}",
        "insert a {new} into the image",
        "there should also be a {new}",
        "add one more shape: a {new}",
    ),
    "remove": (
        "remove the {old}",
        "delete the {old}",
        "take away the {old}",
        "erase the {old} from the image",
        "get rid of the {old}",
        "the {old} should be gone",
    ),
    "replace": (
        "replace the {old} with a {new}",
        "swap the {old} for a {new}",
        "turn the {old} into a {new}",
        "change the {old} into a {new}",
        "put a {new} where the {old} is",
        "there should be a {new} instead of the {old}",
    ),
    "move": (
        "move the {old} {direction}",
        "move the {old} to the {direction}",
        "shift the {old} {direction}",
        "push the {old} further {direction}",
        "slide the {old} {direction}",
        "the {old} should be further {direction}",
    ),
}


@dataclass(frozen=True, slots=True)
class Task:
    """A source scene and what to do with it.

    ``target`` is the index of the shape concerned (None for add and bring); ``goal`` the shape that should stand there
    in the end (None for remove); ``direction`` the way of a move. Of bring, ``second`` is the second source, and
    ``anchor`` the shape of the first beside which the goal belongs.
    """

    scene: Scene
    verb: Verb
    target: int | None
    goal: Shape | None
    direction: str | None
    instruction: str
    second: Scene | None = None
    anchor: Shape | None = None

    @property
    def old(self) -> Shape:
        """The shape concerned, as it is in the source."""
        assert self.target is not None
        return self.scene.shapes[self.target]


def sample_task(random: Random, *, shapes: tuple[int, int], palette: Palette, featured: Palette | None = None) -> Task:
    """A scene of between ``shapes`` shapes, no two alike, from ``palette``, and a task on it.

    With ``featured``, the shape that the task is about, before or after, is one of these.
    """
    while True:  # a crowded scene may have no room for the move or the addition that was drawn: draw again
        task = _try_task(random, shapes, palette, featured)
        if task is not None:
            return task


def new_shape(combination: tuple[str, str], x: float, y: float, size: float, random: Random) -> Shape:
    """A shape of a (colour, kind) with its own shade and turn."""
    colour, kind = combination
    return Shape(kind, colour, shade(colour, random), x, y, size, turn(kind, random))


def _try_task(random: Random, shapes: tuple[int, int], palette: Palette, featured: Palette | None) -> Task | None:
    verb = random.choice(VERBS)
    count = max(random.randint(*shapes), 0 if verb == "add" else 1)
    combinations = random.sample(sorted(palette), count)
    scene = empty_scene(random)
    about = random.choice(sorted(featured or palette))
    feature_goal = featured is not None and verb in ("recolour", "replace") and random.random() < 0.5
    if verb != "add" and not feature_goal:
        combinations = [about, *(one for one in combinations if one != about)][:count]
    for combination in combinations:
        size = random.uniform(SMALLEST, LARGEST)
        spot = place(scene, size, random)
        if spot is None:
            return None
        scene = scene.plus(new_shape(combination, *spot, size, random))
    order = random.sample(range(count), count)  # what is drawn first says nothing about the target
    scene = replace(scene, shapes=tuple(scene.shapes[n] for n in order))
    target = None if verb == "add" else order.index(0)
    goal, direction = None, None
    if verb == "add":
        goal = _added(scene, about, random)
    elif verb == "move":
        goal, direction = moved(scene, order.index(0), random)
    elif verb != "remove":
        goal = _changed(scene, order.index(0), verb, about if feature_goal else None, palette, random)
    if goal is None and verb != "remove":
        return None
    return Task(scene, verb, target, goal, direction, _sentence(random, verb, scene, target, goal, direction))


def _sentence(
    random: Random, verb: Verb, scene: Scene, target: int | None, goal: Shape | None, direction: str | None
) -> str:
    text = random.choice(_SENTENCES[verb]).format(
        old="" if target is None else scene.shapes[target].label,
        new="" if goal is None else goal.label,
        colour="" if goal is None else goal.colour,
        direction=direction,
    )
    text = text.replace(" a orange", " an orange").replace("to the up", "up").replace("to the down", "down")
    return styled(text, random)


def styled(text: str, random: Random) -> str:
    """A sentence as people type it: some with a capital, some with a full stop."""
    style = random.random()
    text = text[0].upper() + text[1:] if style < 0.3 else text
    return text + "." if style < 0.15 or style > 0.9 else text


def _added(scene: Scene, combination: tuple[str, str], random: Random) -> Shape | None:
    if combination in {(shape.colour, shape.kind) for shape in scene.shapes}:
        return None
    size = random.uniform(SMALLEST, LARGEST)
    spot = place(scene, size, random)
    return spot and new_shape(combination, *spot, size, random)


def _changed(
    scene: Scene, target: int, verb: Verb, wanted: tuple[str, str] | None, palette: Palette, random: Random
) -> Shape | None:
    """The goal of a recolouring (another colour) or a replacement (another kind, the colour may change too)."""
    old = scene.shapes[target]
    taken = {(shape.colour, shape.kind) for shape in scene.shapes}
    options = [
        (colour, kind)
        for colour, kind in sorted(palette if wanted is None else {wanted})
        if (colour, kind) not in taken
        and ((kind == old.kind and colour != old.colour) if verb == "recolour" else kind != old.kind)
    ]
    if not options:
        return None
    same_colour = [option for option in options if option[0] == old.colour]
    if verb == "replace" and same_colour and random.random() < 0.4:
        options = same_colour
    colour, kind = random.choice(options)
    rgb = old.rgb if colour == old.colour else shade(colour, random)
    return replace(old, kind=kind, colour=colour, rgb=rgb, turn=old.turn if verb == "recolour" else turn(kind, random))


def moved(
    scene: Scene, index: int, random: Random, *, reach: tuple[float, float] = (0.28, 0.6), direction: str | None = None
) -> tuple[Shape | None, str]:
    """A shape moved by ``reach`` in a direction (any, unless given) to a free place; (None, "") when there is none."""
    shape = scene.shapes[index]
    for name in [direction] if direction else random.sample(sorted(_DIRECTIONS), 4):
        dx, dy = _DIRECTIONS[name]
        for _ in range(12):
            step = random.uniform(*reach)
            x, y = shape.x + dx * step, shape.y + dy * step
            if scene.has_room(x, y, shape.size, ignore=[index]):
                return replace(shape, x=x, y=y), name
    return None, ""
