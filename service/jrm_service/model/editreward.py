"""Imports published EditReward checkpoints with two heads: ``jrm import-editreward``.

EditReward adds ``<|Reward|>`` to the tokenizer of its base model, resizes the embedding to the new length and reads two
heads, each in a turn of its own: source image, edited image, prompt. ``head_0`` is instruction following, ``head_1``
visual quality; each gives (mean, log sigma), and the published model pools the two by their mean.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .manifest import Manifest
from .published import Imported, Published, Usage, import_published
from .published_prompts import template_file
from .statedict import SHARD_BYTES

HEADS = {"instruction_following": "head_0", "visual_quality": "head_1"}  # dimension -> EditReward's head

_SEQUENTIAL = Usage(positions="sequential", pixels=200_704)

EDITREWARD = Published(
    name="EditReward",
    files=("model.pth",),  # if there are other files too, its own code reads this one
    dimensions=HEADS,
    state_names={head: f"rm_heads.{head}" for head in HEADS.values()},
    parts=("source", "edited", "prompt"),
    regions=frozenset({"instruction_following"}),  # C.1 asks for boxes, C.2 does not
    usages={
        # This class calls the model as transformers intends, and its pixel limits do not reach the image processor.
        "qwen3_vl": Usage(positions="mrope", pixels=None),
        # This one embeds ids and images itself and passes only embeddings. MiMo-VL belongs to it too.
        "qwen2_5_vl": _SEQUENTIAL,
        "qwen2_vl": _SEQUENTIAL,
    },
    default_prompts="JRM paper, C.1 and C.2",
)


def default_prompts() -> dict[str, str]:
    """Dimension -> the paper's C.1 or C.2 up to the line of the instruction, then a line that asks for the rating.

    The text is the paper's, without its typesetting: straight quotes, two asterisks for bold.
    """
    return {name: template_file(name) for name in HEADS}


def published_layout(
    name: str,
    image: dict[str, Any],
    templates: dict[str, str],
    hidden: dict[str, list[int]],
    provenance: dict[str, Any],
) -> Manifest:
    """The published layout: one pass for each dimension, each read by its own head, with widths ``hidden``."""
    return EDITREWARD.manifest(name, image, templates, hidden, provenance)


def import_editreward(
    checkpoint: Path,
    base: Path,
    out: Path,
    *,
    prompts: Path | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    name: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Imported:
    """Write the EditReward weights in ``checkpoint`` to ``out`` as a JRM checkpoint, and open it.

    ``prompts`` are by default the paper's appendix C.1 and C.2. Other arguments are those of ``import_published``.
    """
    return import_published(
        EDITREWARD,
        checkpoint,
        base,
        out,
        prompts=prompts,
        pixels=(min_pixels, max_pixels),
        name=name,
        shard_bytes=shard_bytes,
        progress=progress,
    )
