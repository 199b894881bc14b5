"""What an editor makes of held-out tasks: judged by the world, which knows the right edit, and by the service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jrm_client import JRMClient
from jrm_training.world.tasks import Task

from . import tasks, truth
from .editor import load
from .flow import sample
from .grpo import as_pixels
from .pretrain import as_float

TASKS = 240
_BATCH = 48

Figures = dict[str, list[float]]
"""Figure -> its value for each task, in order."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95% interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def held_out(count: int = TASKS) -> list[Task]:
    """Tasks that no training saw."""
    return [tasks.task(tasks.HELD_OUT, number) for number in range(count)]


def edit(file: Path, asked: Sequence[Task]) -> NDArray[np.uint8]:
    """One edit of each task, uint8 [N, 64, 64, 3], by the ODE; the noise of a task is the same for every editor."""
    editor = load(file)
    pictures = []
    for begin in range(0, len(asked), _BATCH):
        batch = asked[begin : begin + _BATCH]
        sources = torch.stack([torch.from_numpy(tasks.source(task).copy()).permute(2, 0, 1) for task in batch])
        noise = torch.stack(
            [torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(begin + n)) for n in range(len(batch))]
        )
        words = editor.read(task.instruction for task in batch)
        samples = sample(editor, as_float(sources), words, torch.Generator(), noise=noise)
        pictures.append(as_pixels(samples.pictures))
    return np.concatenate(pictures)


def judge(url: str, asked: Sequence[Task], pictures: NDArray[np.uint8]) -> tuple[Figures, str]:
    """The world's figures and the service's of each picture, and the fingerprint of the service's checkpoint."""
    seen = [truth.scores(task, picture) for task, picture in zip(asked, pictures, strict=True)]
    figures: Figures = {
        "true_following": [following for following, _ in seen],
        "true_right": [float(following == 1) for following, _ in seen],
        "true_quality": [quality for _, quality in seen],
    }
    with JRMClient(url, timeout=300) as client:
        scores = client.score_batch(
            [(tasks.source(task), picture, task.instruction) for task, picture in zip(asked, pictures, strict=True)]
        )
    figures["reward"] = [score.reward for score in scores]
    for name in scores[0].dimensions:
        figures[name] = [score.dimensions[name].mean for score in scores]
    return figures, scores[0].fingerprint


def difference(after: Sequence[Figures], before: Figures, name: str) -> Estimate:
    """What runs gained over the start, paired by task and averaged over runs; the interval is from resampling tasks."""
    gains = np.mean([np.array(run[name]) - np.array(before[name]) for run in after], axis=0)
    return estimate(gains)


def estimate(values: Sequence[float] | NDArray[Any], resamples: int = 2000) -> Estimate:
    """Mean of values of independent tasks with a bootstrap interval."""
    array = np.asarray(values, float)
    chosen = np.random.default_rng(0).integers(0, len(array), (resamples, len(array)))
    low, high = np.percentile(array[chosen].mean(1), [2.5, 97.5])
    return Estimate(float(array.mean()), float(low), float(high))


def means(figures: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Figure -> mean over the tasks."""
    return {name: float(np.mean(values)) for name, values in figures.items()}
