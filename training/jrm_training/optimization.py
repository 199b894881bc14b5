"""Parameter groups, optimizers and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from .config import Optimizer


def schedule(step: int, total: int, recipe: Optimizer) -> float:
    """Share of the peak learning rate at ``step`` (from 0) of ``total``: linear warm-up, then a cosine to ``final``."""
    warmup = max(1, round(recipe.warmup * total))
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return recipe.final + (1 - recipe.final) * 0.5 * (1 + math.cos(math.pi * progress))


class Optimizers:
    """AdamW for all weights, or Muon for the layers' matrices and AdamW for the rest, as one optimizer.

    Norms, biases and embeddings do not decay: there is nothing to pull them back to. Frozen weights are left out.
    """

    def __init__(self, model: nn.Module, recipe: Optimizer) -> None:
        matrices = dict(_layer_matrices(model)) if recipe.muon_lr else {}
        taken = {id(weight) for weight in matrices.values()}
        trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        rest = {name: weight for name, weight in trained.items() if id(weight) not in taken}
        decayed = {name: weight for name, weight in rest.items() if weight.ndim >= 2 and "embed" not in name}
        kept = {name: weight for name, weight in rest.items() if name not in decayed}
        adamw = [*_by_tower(decayed, recipe.lr, recipe), *_by_tower(kept, recipe.lr, recipe, weight_decay=0.0)]
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(adamw, lr=recipe.lr, betas=recipe.betas, weight_decay=recipe.weight_decay)
        ]
        if recipe.muon_lr:
            muon = _by_tower(matrices, recipe.muon_lr, recipe)
            self.parts.append(torch.optim.Muon(muon, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"))
        self._peaks = [[group["lr"] for group in part.param_groups] for part in self.parts]

    def step(self, share: float) -> None:
        """Update at this share of the peak learning rates, and clear the gradients."""
        for part, peaks in zip(self.parts, self._peaks, strict=True):
            for group, peak in zip(part.param_groups, peaks, strict=True):
                group["lr"] = peak * share
            part.step()
            part.zero_grad(set_to_none=True)


def _by_tower(
    weights: Mapping[str, nn.Parameter], lr: float, recipe: Optimizer, **options: float
) -> list[dict[str, Any]]:
    """Parameter groups for the vision tower, at its share of the learning rate, and for all else."""
    vision = [weight for name, weight in weights.items() if ".visual." in name]
    others = [weight for name, weight in weights.items() if ".visual." not in name]
    groups = [{"params": vision, "lr": lr * recipe.vision, **options}, {"params": others, "lr": lr, **options}]
    return [group for group in groups if group["params"]]


def _layer_matrices(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Matrices inside the layers: Muon's orthogonal updates make no sense for embeddings, tables or small heads."""
    for name, weight in model.named_parameters():
        in_a_layer = ".layers." in name or ".blocks." in name or "merger" in name
        if name.startswith("backbone.") and weight.ndim == 2 and in_a_layer:
            yield name, weight
