"""A run's log as curves of a few points: figures 5 and 10, from one training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jrm_training.bootstrap import Array

POINTS = 150


def curves(logs: Sequence[Mapping[str, Any]], *, points: int = POINTS) -> dict[str, Any]:
    """Means over windows of equal length, at most ``points`` of them; ``logs`` are the steps as ``read_log`` has them.

    ``window`` is the length in steps; the last window is what is left. ``step`` [P] is the middle of each window;
    ``rank`` (Eq. 5), ``language`` (Eq. 6), ``gradient_norm`` (before clipping) and, by dimension, ``accuracy`` are the
    means. ``language`` is None where no step had a critique to learn from, a mean is None where no step of its window
    had a pair to order. Raises ValueError without a step.
    """
    if not logs:
        raise ValueError("the log has no steps")
    window = -(-len(logs) // points)
    dimensions = list(dict.fromkeys(name for log in logs for name in log["accuracy"]))

    def means(values: Sequence[float | None]) -> list[float | None]:
        every = np.array([np.nan if value is None else value for value in values], np.float64)
        return [_mean(every[start : start + window]) for start in range(0, len(every), window)]

    language = [log["language"] for log in logs]
    return {
        "steps": logs[-1]["step"],
        "window": window,
        "step": means([log["step"] for log in logs]),
        "rank": means([log["rank"] for log in logs]),
        "language": means(language) if any(language) else None,
        "gradient_norm": means([log["gradient_norm"] for log in logs]),
        "accuracy": {name: means([log["accuracy"].get(name) for log in logs]) for name in dimensions},
    }


def stage_ends(recipe: Mapping[str, Any]) -> list[float]:
    """The steps at which a curriculum goes on to its next stage; none where the data has no stages."""
    stages = recipe["data"]["curriculum"]
    ends = np.cumsum([stage["groups"] for stage in stages])[:-1] / recipe["batch"]
    return [float(end) for end in ends] if recipe["epochs"] == 1 else []


def _mean(values: Array) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None
