"""The synthetic world's tasks on square pictures of 64 pixels, and the edits that an editor is pretrained on."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations, product
from random import Random

import numpy as np
from numpy.typing import NDArray

from jrm_training.world import edits, flaws
from jrm_training.world.scene import draw
from jrm_training.world.tasks import SEEN, Task, sample_task

SIDE = 64
# The splits differ in their seeds alone: other scenes and instructions of the same kinds.
TRAINING, HELD_OUT = "training", "held-out"

# What the editor is pretrained on: right in less than half of the cases.
QUALITIES = {
    "right": 0.4,
    "partly_right": 0.15,
    "wrong_result": 0.15,
    "over_edited": 0.1,
    "wrong_object": 0.1,
    "unchanged": 0.1,
}
FLAWED = 0.5  # have noise or blur, slight or clear


def task(split: str, index: int, shapes: tuple[int, int] = (1, 3)) -> Task:
    """The task of this number in a split; deterministic."""
    random = Random(f"flow_grpo/{split}/{index}")
    while True:
        drawn = sample_task(random, shapes=shapes, palette=SEEN)
        if drawn.scene.width == drawn.scene.height and _apart(drawn):
            return replace(drawn, scene=replace(drawn.scene, pen="none"))


def _apart(drawn: Task) -> bool:
    """Whether every two shapes, before and after, have background between them: that is how they are told apart."""
    others = [shape for number, shape in enumerate(drawn.scene.shapes) if number != drawn.target]
    concerned = [shape for shape in (drawn.goal, None if drawn.target is None else drawn.old) if shape is not None]
    pairs = [*combinations(others, 2), *product(others, concerned)]
    return all(math.hypot(a.x - b.x, a.y - b.y) > 1.42 * (a.size + b.size) + 0.03 for a, b in pairs)


def example(index: int) -> tuple[Task, NDArray[np.uint8], NDArray[np.uint8]]:
    """A training task with the source and an edit of it, uint8 [64, 64, 3]: right or wrong, clean or flawed."""
    drawn = task(TRAINING, index)
    random = Random(f"flow_grpo/example/{index}")
    made = None
    while made is None:
        quality = random.choices(list(QUALITIES), list(QUALITIES.values()))[0]
        made = edits.edit(drawn, quality, SEEN, random)
    picture = draw(made.scene, SIDE, 2)
    if random.random() < FLAWED:
        kind = random.choice(("noise", "blur"))
        low, high = flaws.BANDS[kind][random.choice((3, 2))]
        picture = flaws.apply(picture, flaws.Flaw(kind, random.uniform(low, high), index))
    return drawn, np.asarray(draw(drawn.scene, SIDE, 2)), np.asarray(picture)


def source(drawn: Task) -> NDArray[np.uint8]:
    """The picture of a task's scene, uint8 [64, 64, 3]."""
    return np.asarray(draw(drawn.scene, SIDE, 2))
