"""What a checkpoint brings for critiques: what is asked first, and how much memory its language half takes."""

from __future__ import annotations

import torch
from PIL import Image as PILImage

from jrm_service.errors import ExplainSetupError
from jrm_service.explain import memory
from jrm_service.explain.service import as_prompt
from jrm_service.explain.writer import Prompt
from jrm_service.scoring.preparing import CheckpointPreparer

from .checkpoint import Checkpoint
from .families import text_head_dim


def first_question(checkpoint: Checkpoint) -> Prompt:
    """What a new engine answers before anybody else asks, about blank images."""
    preparer = CheckpointPreparer(checkpoint)
    blank = preparer.image(PILImage.new("RGB", (64, 64), "gray"))
    sources = [blank] * min(preparer.max_sources, 1)
    sequence = preparer.question(next(iter(checkpoint.manifest.explained)), sources, blank, "warm up")
    return as_prompt(sequence, int(checkpoint.config.image_token_id))


def require_memory(
    checkpoint: Checkpoint,
    device: str,
    *,
    dtype: str,
    context: int,
    share: float,
    cache_gib: float,
    scorer: bool,
    available: int | None,
) -> None:
    """Raise ExplainSetupError, with the arithmetic, when the language head cannot fit on the device.

    ``scorer``: whether the same device scores too. ``available``: bytes of the host's memory that were free before
    either was loaded, None where nobody knows.
    """
    text = checkpoint.config.text_config
    shape = memory.Shape(
        checkpoint.parameters, text.num_hidden_layers, text.num_key_value_heads, text_head_dim(checkpoint.config)
    )
    width = torch.empty((), dtype=getattr(torch, dtype)).element_size()
    if device == "cpu":
        cache = int(cache_gib * memory.GiB)
        found = memory.cpu_problem(
            shape, available=available, cache=cache, scorer=scorer, context=context, bytes_per_value=width
        )
    else:
        total = torch.cuda.get_device_properties(device).total_memory
        found = memory.problem(
            shape, total=total, share=share, scorer=scorer, context=context, bytes_per_value=width, device=device
        )
    if found:
        raise ExplainSetupError([f"serve explain: {found}"])
