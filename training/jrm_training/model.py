"""The joint model: one backbone pass over a packed row gives **h** for the reward heads and logits for the critique."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import Qwen3VLModel

from jrm_service.errors import CheckpointError
from jrm_service.images.preprocess import ImageSpec
from jrm_service.model.checkpoint import Checkpoint, load_model
from jrm_service.model.heads import RewardHeads
from jrm_service.model.rows import PackedModel
from jrm_service.model.weights import LM_HEAD, read_tensors

from .batch import GroupRow


@dataclass(frozen=True, slots=True)
class JointOutput:
    """What the losses need from a row, and **h** for analysis.

    ``outputs`` has float32 [candidates, 1 or 2] for each dimension: mean, or mean and log_std. ``logits`` [C, V] are of
    the tokens in ``GroupRow.targets``; ``h`` is [candidates, passes, H].
    """

    outputs: dict[str, torch.Tensor]
    logits: torch.Tensor
    h: torch.Tensor


class JointModel(nn.Module):
    """Backbone (Eq. 1), reward heads (Eq. 2) and language head (Eq. 3), which may be tied to the embedding."""

    def __init__(self, backbone: Qwen3VLModel, heads: RewardHeads, lm_head: nn.Linear, spec: ImageSpec) -> None:
        super().__init__()
        self.backbone, self.heads, self.lm_head = backbone, heads, lm_head
        self.packed = PackedModel(backbone, spec)

    @classmethod
    def load(
        cls, checkpoint: Checkpoint, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> JointModel:
        """All weights in ``dtype``, heads in float32, ready to train.

        Raises CheckpointError when a tensor holds NaN or infinity.
        """
        backbone, heads = load_model(checkpoint, device, dtype)
        embedding = backbone.get_input_embeddings().weight
        lm_head = nn.Linear(embedding.shape[1], embedding.shape[0], bias=False, device="meta")
        lm_head.weight = embedding
        if not checkpoint.config.tie_word_embeddings:
            problems: list[str] = []
            header = {LM_HEAD: checkpoint.weights[LM_HEAD]}
            ((_, weight),) = read_tensors(header, torch.device(device), dtype, problems)
            if problems:
                raise CheckpointError(problems)
            lm_head.weight = nn.Parameter(weight)
        return cls(backbone, heads, lm_head, checkpoint.image_spec).train().requires_grad_(True)

    def forward(self, row: GroupRow) -> JointOutput:
        """Run one packed row, from the host. The language head sees only the slots before critique tokens."""
        device, vision = self.backbone.device, self.packed.vision
        images = row.packed.distinct_images
        encoded = vision.encode([vision.inputs(image.pixels) for image in images.values()])
        hidden = self.packed.hidden_states(row.packed.to(device), dict(zip(images, encoded, strict=True)))
        h = hidden[row.reads.to(device)]
        return JointOutput(self.heads(list(h.unbind(1))), self.lm_head(hidden[row.before.to(device)]), h)

    @torch.no_grad()
    def forget_sigma(self) -> None:
        """Set every head's log sigma to 0, whatever h is. Means stay as they are."""
        tensors = self.heads.tensors()
        for name, head in self.heads.manifest.heads.items():
            if "log_std" in head.outputs:
                for kind in ("weight", "bias"):
                    tensors[f"{name}.{len(head.hidden)}.{kind}"][head.outputs.index("log_std")] = 0

    def split(self, state: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """A state dict of this module as (stock weights, tensors of the heads), by their names in a checkpoint.

        A tied language head is left out: it is the embedding.
        """
        stock = {
            f"model.{name.removeprefix('backbone.')}": tensor
            for name, tensor in state.items()
            if name.startswith("backbone.")
        }
        if not self.backbone.config.tie_word_embeddings:
            stock[LM_HEAD] = state["lm_head.weight"]
        heads: dict[str, torch.Tensor] = {}
        for number, name in enumerate(self.heads.manifest.heads):
            layers = f"heads.heads.{number}.layers."
            heads |= {
                f"{name}.{key.removeprefix(layers)}": value for key, value in state.items() if key.startswith(layers)
            }
        return stock, heads
