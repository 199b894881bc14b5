"""Reward heads (Eq. 2): small float32 MLPs on the hidden state **h** of the reward token."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import nn

from jrm_service.scoring.types import Dimension, Score, combine

from .manifest import Head, Manifest


def head_shapes(manifest: Manifest, hidden_size: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in ``reward/heads.safetensors``, e.g. ``head_0.0.weight`` [1024, H]."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, head in manifest.heads.items():
        for number, (inputs, outputs) in enumerate(_widths(head, hidden_size)):
            shapes[f"{name}.{number}.weight"] = (outputs, inputs)
            shapes[f"{name}.{number}.bias"] = (outputs,)
    return shapes


def _widths(head: Head, hidden_size: int) -> list[tuple[int, int]]:
    sizes = [hidden_size, *head.hidden, len(head.outputs)]
    return list(itertools.pairwise(sizes))


class RewardHead(nn.Module):
    """Linear-ReLU per hidden width, then Linear: float [..., H] -> float32 [..., outputs]."""

    def __init__(self, head: Head, hidden_size: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Linear(inputs, outputs, dtype=torch.float32) for inputs, outputs in _widths(head, hidden_size)
        )

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """Compute the outputs without autocast: bf16 would round away the differences that GRPO learns from."""
        kind = h.device.type
        with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
            h = h.float()
            for number, layer in enumerate(self.layers):
                h = layer(torch.relu(h) if number else h)
        return h


class RewardHeads(nn.Module):
    """All heads of a manifest, in its order. They have no submodule names, because a head's name may be any text."""

    def __init__(self, manifest: Manifest, hidden_size: int) -> None:
        super().__init__()
        self.manifest = manifest
        self.heads = nn.ModuleList(RewardHead(head, hidden_size) for head in manifest.heads.values())

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Load the tensors of ``reward/heads.safetensors``, named as in ``head_shapes``."""
        for name, parameter in self.tensors().items():
            parameter.copy_(tensors[name])

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors for ``reward/heads.safetensors``, sharing memory with the heads."""
        return {
            f"{name}.{key.removeprefix('layers.')}": tensor
            for name, head in zip(self.manifest.heads, self.heads, strict=True)
            for key, tensor in head.state_dict().items()
        }

    def forward(self, h_of_pass: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Hidden states [H] or [B, H], one per pass -> float32 outputs [..., 1 or 2] per dimension."""
        head_of = dict(zip(self.manifest.heads, self.heads, strict=True))
        return {
            dimension: head_of[head](h)
            for pass_, h in zip(self.manifest.passes, h_of_pass, strict=True)
            for dimension, head in pass_.read.items()
        }

    def table(self, h: torch.Tensor) -> torch.Tensor:
        """**h** [candidates, passes, H] -> float32 [candidates, columns]: every dimension's outputs, in order.

        Each candidate is computed alone, so that the heads' rounding does not depend on the batch.
        """
        every = (self(list(of_candidate)) for of_candidate in h.float())
        return torch.stack([torch.cat(list(outputs.values())) for outputs in every])


def to_score(manifest: Manifest, outputs: Mapping[str, Sequence[float]]) -> Score:
    """Head outputs of one candidate, on the host, to a score: std = exp(log_std), then the manifest's pooling.

    An exp that overflows gives infinity, which ``Score.finite`` catches; it is never clipped to a plausible number.
    """
    dimensions = {
        name: Dimension(values[0], _exp(values[1]) if len(values) == 2 else None) for name, values in outputs.items()
    }
    reward, reward_std = combine(dimensions, manifest.pooled_weights, manifest.reward.combine)
    return Score(reward=reward, reward_std=reward_std, dimensions=dimensions)


def _exp(log_std: float) -> float:
    try:
        return math.exp(log_std)
    except OverflowError:
        return math.inf
