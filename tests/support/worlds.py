"""Tasks and edits of the synthetic world for the property tests, each from a seed of its own."""

from dataclasses import replace
from random import Random

import numpy as np
from hypothesis import strategies as st

from jrm_training.world import HELD_OUT, SEEN
from jrm_training.world.edits import LABELS, Edit, edit
from jrm_training.world.scene import Scene, draw
from jrm_training.world.tasks import ALL, Task, sample_task

randoms = st.integers(0, 2**32).map(Random)
tasks = st.builds(lambda random: sample_task(random, shapes=(1, 5), palette=SEEN), randoms)
unseen_tasks = st.builds(lambda random: sample_task(random, shapes=(1, 5), palette=ALL, featured=HELD_OUT), randoms)


def edits_of(task: Task, random: Random) -> dict[str, Edit]:
    """An edit of every quality that the task has."""
    made = {quality: edit(task, quality, SEEN, random) for quality in LABELS}
    return {quality: one for quality, one in made.items() if one is not None}


def task_for(verb: str, shapes: int = 3, **chosen: object) -> Task:
    """The first task, by seed, with this verb, exactly so many shapes and these fields."""
    for seed in range(20_000):
        task = sample_task(Random(seed), shapes=(shapes, shapes), palette=SEEN)
        if task.verb == verb and all(getattr(task, name) == value for name, value in chosen.items()):
            return task
    raise LookupError(f"no task to {verb} with {shapes} shapes and {chosen}")


def pixels(scene: Scene, side: int = 128, oversample: int = 1) -> np.ndarray:
    """The scene drawn without flaws, as numbers that can be subtracted: int64 [height, width, 3]."""
    return np.asarray(draw(scene, side, oversample), np.int64)


def changed(before: Scene, after: Scene, side: int = 128) -> np.ndarray:
    """Where two scenes of one format are drawn differently: bool [height, width]."""
    return (pixels(before, side) != pixels(after, side)).any(axis=2)


def without_shapes(scene: Scene) -> Scene:
    return replace(scene, shapes=())
