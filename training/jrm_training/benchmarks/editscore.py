"""EditScore/EditReward-Bench: 13 kinds of edits in three dimensions, the first edit preferred in every row.

Counted as in EditScore's ``evaluation.py`` and ``calculate_statistics.py``: right is a higher score of the first edit,
an equal one is wrong; the average is over the kinds of edits, not over the pairs; edits are resized to their source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jrm_training.bootstrap import Array, MacroShare, Tally

from .formulas import Labels, in_order, share_sums
from .pairs import Benchmark, Clusters, Pair, Parsed
from .rows import image, image_field, items, text

DIMENSIONS = ("prompt_following", "consistency", "overall")
TASKS = {
    "object": ("subject-add", "subject-remove", "subject-replace"),
    "appearance": ("color_alter", "material_alter", "style_change", "tone_transfer"),
    "scene": ("background_change", "extract"),
    "advanced": ("ps_human", "text_change", "motion_change", "compose"),
}


def parse(row: Mapping[str, Any], folder: Path) -> Parsed:
    """Read a row. Raises ValueError with the field that is missing or wrong."""
    dimension, task = text(row, "dimension"), text(row, "task_type")
    if dimension not in DIMENSIONS:
        raise ValueError(f"dimension: expected one of {', '.join(DIMENSIONS)}, got {dimension[:40]}")
    if not any(task in tasks for tasks in TASKS.values()):
        raise ValueError(f"task_type: {task[:40]} is not one of the 13 of this benchmark")
    keys = [str(key) for key in items(row, "key", 2)]
    first, second = (
        image(value, f"output_images[{n}]", folder) for n, value in enumerate(items(row, "output_images", 2))
    )
    return Parsed(
        sources=[image_field(row, "input_image", folder)],
        edits=(first, second),
        instruction=text(row, "instruction"),
        label=1,
        parts=(dimension, f"{dimension}/{task}"),
        identity=(dimension, *keys),
    )


def published(
    pairs: Sequence[Pair], labels: Labels, differences: Array, clusters: Clusters, *, cut: bool
) -> Mapping[str, Mapping[str, Tally]]:
    """Implements ``pairs.Published``: for each dimension the averages over kinds of edits, of all and by field."""
    right, scored = in_order(labels, differences), np.isfinite(differences)
    figures: dict[str, dict[str, Tally]] = {}
    for dimension in DIMENSIONS:
        sums = {}
        for task in (task for tasks in TASKS.values() for task in tasks):
            of_task = np.array([f"{dimension}/{task}" in pair.parts for pair in pairs], bool)
            counted = of_task & scored
            if counted.any():
                sums[task] = share_sums(right, counted, clusters.of_pair, clusters.count)
        if not sums:
            continue
        figures[dimension] = {"published_average": MacroShare(np.concatenate([*sums.values()], axis=1))}
        for field, tasks in TASKS.items():
            if all(task in sums for task in tasks):
                parts = np.concatenate([sums[task] for task in tasks], axis=1)
                figures[dimension][f"published_{field}"] = MacroShare(parts)
    return figures


BENCHMARK = Benchmark(
    name="editscore",
    title="EditScore/EditReward-Bench",
    files=("**/train-*.parquet", "**/*.parquet", "*.jsonl"),
    parse=parse,
    published=published,
    caution="not the EditReward-Bench of TIGER-Lab: no number here compares with one there",
    resize=True,
)
