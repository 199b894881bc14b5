"""Imports the published HPSv3 checkpoint: ``jrm import-hpsv3``.

HPSv3 scores a generated image against the text that it was made from: Qwen2-VL, one turn of one image and the prompt,
one head that gives (mu, log sigma) at ``<|Reward|>``. Its training takes the exponential of the second output for
sigma.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .published import Imported, Published, Usage, import_published
from .statedict import SHARD_BYTES

DIMENSION = "preference"

HPSV3 = Published(
    name="HPSv3",
    files=("HPSv3.safetensors",),
    dimensions={DIMENSION: "head_0"},
    state_names={"head_0": "rm_head"},
    parts=("edited", "prompt"),
    regions=frozenset(),
    # Its class embeds ids and image itself and passes only embeddings; its own code resizes.
    usages={"qwen2_vl": Usage(positions="sequential", pixels=200_704)},
    default_prompts="jrm-serve's own",
)


def import_hpsv3(
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
    """Write the HPSv3 weights in ``checkpoint`` to ``out`` as a JRM checkpoint, and open it.

    ``prompts`` is by default a template of our own. Other arguments are those of ``import_published``.
    """
    return import_published(
        HPSV3,
        checkpoint,
        base,
        out,
        prompts=prompts,
        pixels=(min_pixels, max_pixels),
        name=name,
        shard_bytes=shard_bytes,
        progress=progress,
    )
