"""Counts the work of a batch: tokens, images through the vision tower, and FLOPs.

Nothing is timed and no weights are loaded: torch's FLOP counter watches the engine's own forward pass on the meta
device. Attention counts as every query against every key that its kernel is given. Reward heads are left
out: less than a part in 100,000.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode

from jrm_service.images.preprocess import ImageSpec
from jrm_service.model.rows import PackedModel, pack
from jrm_service.model.weights import empty_model
from jrm_service.scoring.types import Candidate

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Work:
    """What a batch costs: language-model tokens, images through the vision tower, FLOPs of either."""

    tokens: int
    encodings: int
    language_flops: int
    vision_flops: int

    @property
    def flops(self) -> int:
        """FLOPs of both; a multiplication and an addition are two."""
        return self.language_flops + self.vision_flops


class WorkCounter:
    """Counts what the engine does, for the backbone of ``config`` and images cut as ``spec`` says."""

    def __init__(self, config: Any, spec: ImageSpec) -> None:
        self._config = config
        self._spec = spec
        self._model = PackedModel(empty_model(config).to(torch.bfloat16).eval(), spec)

    @torch.inference_mode()
    def packed(self, candidates: Sequence[Candidate]) -> Work:
        """All candidates in one packed row: every distinct path once, every distinct image once."""
        row = pack(
            [sequence.segments for candidate in candidates for sequence in candidate.sequences],
            factor=self._spec.factor,
            image_token_id=self._config.image_token_id,
        )
        images, vision = row.distinct_images, self._model.vision
        inputs = [vision.inputs(image.pixels) for image in images.values()]
        features, vision_flops = counted(lambda: vision.encode(inputs))
        by_key = dict(zip(images, features, strict=True))
        _, language_flops = counted(lambda: self._model.hidden_states(row.to("meta"), by_key))
        return Work(row.ids.numel(), len(images), language_flops, vision_flops)


def counted(run: Callable[[], T]) -> tuple[T, int]:
    """Return the result of ``run``, and the FLOPs that it needed."""
    with FlopCounterMode(display=False) as counter:
        result = run()
    return result, int(counter.get_total_flops())
