"""A model that is built on its device with random weights, for scorers that otherwise load a checkpoint.

A bare GPU machine has torch, transformers, numpy and pillow, but no checkpoint on disk and no pydantic, which reads the
files of one. The scorers need neither: they take from a checkpoint what ``InPlace`` has, and ask
``load_model`` for the rest. ``stand_in`` puts both in the place of the two modules that read files. It has to come
before anything of ``jrm_service.model`` is imported, so it belongs into a process of its own.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import ModuleType
from typing import Any

import torch
from transformers import Qwen3VLConfig, Qwen3VLModel

from jrm_service.images.preprocess import ImageSpec

from .shapes import Shape


@dataclass(frozen=True)
class Head:
    """As in a manifest."""

    hidden: list[int]
    outputs: list[str]


@dataclass(frozen=True)
class Pass:
    """As in a manifest, as far as scoring reads it."""

    read: dict[str, str]


@dataclass(frozen=True)
class Pooling:
    """As in a manifest."""

    combine: str = "mean"


@dataclass(frozen=True)
class Manifest:
    """The published layout: two passes, a head for each, hidden widths 1024 and 16, pooled by mean."""

    passes: list[Pass] = field(
        default_factory=lambda: [Pass({"instruction_following": "head_0"}), Pass({"visual_quality": "head_1"})]
    )
    heads: Mapping[str, Head] = field(
        default_factory=lambda: {name: Head([1024, 16], ["mean", "log_std"]) for name in ("head_0", "head_1")}
    )
    reward: Pooling = Pooling()

    @property
    def dimensions(self) -> list[str]:
        """Names of all dimensions."""
        return [dimension for one in self.passes for dimension in one.read]

    @property
    def pooled_weights(self) -> dict[str, float]:
        """All weigh the same."""
        return dict.fromkeys(self.dimensions, 1.0)


class InPlace:
    """What the scorers take from a checkpoint. Its model is built once, on the device that asks first."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.manifest = Manifest()

    @cached_property
    def config(self) -> Qwen3VLConfig:
        """The architecture."""
        return Qwen3VLConfig.from_dict(dict(self.shape.config))

    @property
    def image_spec(self) -> ImageSpec:
        """How images are cut."""
        return self.shape.spec

    def load_model(self, device: str, dtype: torch.dtype) -> tuple[Qwen3VLModel, Any]:
        """The backbone in ``dtype`` and the reward heads in float32, random but equal for every instance."""
        if not hasattr(self, "_built"):
            self._built = self._build(device, dtype)
        return self._built

    def _build(self, device: str, dtype: torch.dtype) -> tuple[Qwen3VLModel, Any]:
        from jrm_service.model.heads import RewardHeads  # after `stand_in`

        random = torch.Generator(device).manual_seed(0)
        with torch.device(device):
            model = Qwen3VLModel._from_config(self.config, dtype=dtype)
            heads = RewardHeads(self.manifest, self.config.text_config.hidden_size)  # type: ignore[arg-type]
        with torch.no_grad():
            for part in (model, heads):
                for name, parameter in part.named_parameters():
                    _fill(name, parameter, random)
        return model.eval().requires_grad_(False), heads.eval().requires_grad_(False)


def _fill(name: str, parameter: torch.Tensor, random: torch.Generator) -> None:
    """Norms are 1, matrices scaled by their fan-in: activations keep their size through any number of layers."""
    if "norm" in name and name.endswith("weight"):
        parameter.fill_(1)
    else:
        fan_in = math.prod(parameter.shape[1:]) if parameter.dim() > 1 else 64
        parameter.normal_(std=1 / math.sqrt(fan_in), generator=random)


def stand_in() -> None:
    """Make ``InPlace`` and ``Manifest`` what the scorers know as a checkpoint and a manifest."""
    manifest = ModuleType("jrm_service.model.manifest")
    vars(manifest).update(Manifest=Manifest, Head=Head)
    checkpoint = ModuleType("jrm_service.model.checkpoint")
    vars(checkpoint).update(Checkpoint=InPlace, load_model=InPlace.load_model)
    for module in (manifest, checkpoint):
        if module.__name__ in sys.modules:
            raise RuntimeError(f"{module.__name__} is imported already")
        sys.modules[module.__name__] = module
