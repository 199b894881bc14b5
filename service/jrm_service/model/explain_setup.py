"""The explain side of a checkpoint: the warm-up prompt, and whether its language head fits into memory."""

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
    """The prompt that warms a new engine up: a question about blank images."""
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

    ``scorer``: whether the same device scores too. ``available``: bytes of host memory that were free before either
    was loaded, None if that is unknown.
    """
    text = checkpoint.config.text_config
    shape = memory.Shape(
        checkpoint.parameters, text.num_hidden_layers, text.num_key_value_heads, text_head_dim(checkpoint.config)
    )
    width = torch.empty((), dtype=getattr(torch, dtype)).element_size()
    if device == "cpu":
        cache = int(cache_gib * memory.GiB)
        problem = memory.cpu_problem(
            shape, available=available, cache=cache, scorer=scorer, context=context, bytes_per_value=width
        )
    else:
        total = torch.cuda.get_device_properties(device).total_memory
        problem = memory.problem(
            shape, total=total, share=share, scorer=scorer, context=context, bytes_per_value=width, device=device
        )
    if problem:
        raise ExplainSetupError([f"serve explain: {problem}"])
