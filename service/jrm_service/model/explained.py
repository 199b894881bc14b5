"""What a checkpoint brings for critiques: what is asked, and how much memory its language half takes."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from PIL import Image as PILImage

from jrm_service.errors import ExplainSetupError
from jrm_service.explain import memory
from jrm_service.explain.runtime import Explainable
from jrm_service.explain.service import as_prompt
from jrm_service.host_memory import available_memory
from jrm_service.scoring.types import Image, TokenSequence

from .checkpoint import Checkpoint
from .families import text_head_dim
from .scorer import CheckpointPreparer


class CheckpointQuestions:
    """Implements ``Questions``: the images of the scorer, and the prompts that the manifest's ``explain`` names."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._preparer = CheckpointPreparer(checkpoint)
        self._builder = checkpoint.builder

    def image(self, rgb: PILImage.Image) -> Image:
        """RGB to pixels as the model sees them. Raises ImageTooLarge."""
        return self._preparer.image(rgb)

    def question(self, dimension: str, source: Image, edited: Image, instruction: str) -> TokenSequence:
        """The prompt of one dimension. Raises InstructionTooLong."""
        return self._builder.question(dimension, source, edited, instruction)


def explainable(checkpoint: Checkpoint) -> Explainable:
    """What is asked. Raises ExplainSetupError for a checkpoint that explains nothing, and without vLLM."""
    dimensions = {
        name: checkpoint.manifest.explain[name].regions
        for name in checkpoint.manifest.dimensions
        if name in checkpoint.manifest.explain
    }
    problems = []
    if not dimensions:
        problems.append("serve explain: reward/manifest.json has no 'explain': this checkpoint only scores")
    if find_spec("vllm") is None:
        problems.append("serve explain: vllm is missing: pip install 'jrm-serve[explain]', on a CPU [explain-cpu]")
    if problems:
        raise ExplainSetupError(problems)
    questions, placeholder = CheckpointQuestions(checkpoint), int(checkpoint.config.image_token_id)
    blank = questions.image(PILImage.new("RGB", (64, 64), "gray"))
    sequence = questions.question(next(iter(dimensions)), blank, blank, "warm up")
    return Explainable(questions, placeholder, dimensions, as_prompt(sequence, placeholder))


def require_memory(
    checkpoint: Checkpoint, device: str, *, dtype: str, context: int, share: float, cache_gib: float, scorer: bool
) -> None:
    """Raise ExplainSetupError, with the arithmetic, when the language head cannot fit on the device.

    ``scorer``: whether the same device scores too.
    """
    text = checkpoint.config.text_config
    shape = memory.Shape(
        checkpoint.parameters, text.num_hidden_layers, text.num_key_value_heads, text_head_dim(checkpoint.config)
    )
    width = torch.empty((), dtype=getattr(torch, dtype)).element_size()
    if device == "cpu":
        cache = int(cache_gib * memory.GiB)
        found = memory.cpu_problem(
            shape, available=available_memory(), cache=cache, scorer=scorer, context=context, bytes_per_value=width
        )
    else:
        total = torch.cuda.get_device_properties(device).total_memory
        found = memory.problem(
            shape, total=total, share=share, scorer=scorer, context=context, bytes_per_value=width, device=device
        )
    if found:
        raise ExplainSetupError([f"serve explain: {found}"])
