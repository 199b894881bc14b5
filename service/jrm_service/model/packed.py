"""The model over packed rows: from the first copy to the last number the host waits for nothing of the device."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from transformers import Qwen3VLModel

from jrm_service.images.preprocess import ImageSpec

from .attention import ATTENTION, ImageFeatures, add_deepstack
from .features import Features
from .heads import RewardHeads
from .packing import Row
from .varlen import Kernel
from .vision import VisionTower


class PackedModel:
    """Backbone and heads for rows of the trie. It changes how the backbone attends: nothing else may use that."""

    def __init__(
        self, backbone: Qwen3VLModel, heads: RewardHeads, spec: ImageSpec, kernel: Kernel | None = None
    ) -> None:
        """``kernel``: see ``find_kernel``."""
        self.kernel = kernel
        self.vision = VisionTower(backbone.visual, spec, kernel)
        self._embedding = backbone.get_input_embeddings()
        self._language = backbone.language_model
        self._heads = heads
        self._language.config._attn_implementation = ATTENTION
        add_deepstack(self._language, len(backbone.visual.deepstack_visual_indexes))

    def outputs(self, row: Row, features: Mapping[bytes, Features]) -> torch.Tensor:
        """Float32 [candidates, columns]: the outputs of every dimension, in the manifest's order.

        ``row`` and the ``features`` of all of its images, by key, are on the device.
        """
        h = self._hidden_states(row, features).float().view(len(row.candidates), len(self._heads.manifest.passes), -1)
        # Each candidate alone, so that its score has no neighbours.
        every = (self._heads(list(of_candidate)) for of_candidate in h)
        return torch.stack([torch.cat(list(outputs.values())) for outputs in every])

    def _hidden_states(self, row: Row, features: Mapping[bytes, Features]) -> torch.Tensor:
        """**h** [reads, H] of every reward token (Eq. 1), after the last norm."""
        in_order = [features[image.key] for image in row.images]
        embeds = self._embedding(row.ids)
        images = torch.cat([one.embeds for one in in_order]).to(embeds.dtype)
        layers = zip(*(one.deepstack for one in in_order), strict=True)
        hidden: torch.Tensor = self._language(
            inputs_embeds=embeds.index_copy(0, row.image_slots, images)[None],
            position_ids=row.position_ids,
            attention_mask=None,
            use_cache=False,
            trie=row.attention,
            features=ImageFeatures(row.image_slots, [torch.cat(layer) for layer in layers]),
        ).last_hidden_state
        return hidden[0].index_select(0, row.reads)
