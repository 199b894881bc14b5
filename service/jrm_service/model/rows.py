"""Packed rows: a trie of sequences as tensors, and the forward pass over it that serving and training share.

On a GPU, the host does not wait for the device from the first copy to the last number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from jrm_service.images.preprocess import ImageSpec
from jrm_service.scoring.types import Image, Segment, Text

from .attention import ATTENTION, TrieAttention
from .families import family_of
from .features import Features
from .manifest import PositionRule
from .trie import build_trie, positions
from .varlen import Kernel
from .vision import VisionTower


@dataclass(frozen=True, slots=True)
class Row:
    """Sequences packed into one row.

    ``ids`` int64 [T] has the image token at image slots, ``position_ids`` is int64 [3, 1, T]; ``images`` are in packed
    order, at ``image_slots`` int64 [image tokens], and stay on the host. ``reads`` int64 [sequences] are the packed
    positions of the sequences' last tokens, in input order.
    """

    ids: torch.Tensor
    position_ids: torch.Tensor
    attention: TrieAttention
    images: list[Image]
    image_slots: torch.Tensor
    reads: torch.Tensor

    @property
    def distinct_images(self) -> dict[bytes, Image]:
        """Every image once, by key."""
        return {image.key: image for image in self.images}

    def to(self, device: str | torch.device) -> Row:
        """The same on a device, without waiting for it."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=True), self.attention.to(device))

    def pin(self) -> Row:
        """The same in pinned memory, from which a GPU copies without the host waiting."""
        return self._with(torch.Tensor.pin_memory, self.attention.pin())

    def _with(self, change: Callable[[torch.Tensor], torch.Tensor], attention: TrieAttention) -> Row:
        return replace(
            self,
            ids=change(self.ids),
            position_ids=change(self.position_ids),
            attention=attention,
            image_slots=change(self.image_slots),
            reads=change(self.reads),
        )


def pack(
    sequences: Sequence[Sequence[Segment]],
    *,
    factor: int,
    image_token_id: int,
    position_rule: PositionRule = "mrope",
    kernel: Kernel | None = None,
) -> Row:
    """Pack sequences into a row on the host, common beginnings once. ``factor``: the side of a token in pixels.

    ``position_rule``: see ``trie.positions``; ``kernel``: attends to the row, see ``find_kernel``.
    """
    trie = build_trie(sequences)
    segments = list(trie.segments)
    ids = [np.array(s.ids, np.int64) if isinstance(s, Text) else np.full(s.tokens, image_token_id) for s in segments]
    at_image = np.concatenate([np.full(segment.tokens, isinstance(segment, Image)) for segment in segments])
    return Row(
        ids=torch.from_numpy(np.concatenate(ids)),
        position_ids=torch.from_numpy(positions(trie, factor, position_rule))[:, None],
        attention=TrieAttention.of(trie, kernel),
        images=[segment for segment in segments if isinstance(segment, Image)],
        image_slots=torch.from_numpy(np.flatnonzero(at_image)),
        reads=torch.tensor(trie.reads),
    )


class PackedModel:
    """A backbone for packed rows. It changes the backbone's attention, so nothing else may call the backbone.

    It holds no weights of its own and keeps gradients if they are wanted, so training differentiates through the same
    code that serves.
    """

    def __init__(self, backbone: Any, spec: ImageSpec, kernel: Kernel | None = None) -> None:
        """``backbone`` is of a family that is served; ``kernel``: see ``find_kernel``."""
        self.kernel = kernel
        self.vision = VisionTower(backbone.visual, family_of(backbone.config), spec, kernel)
        self._language = backbone.language_model
        self._language.config._attn_implementation = ATTENTION
        self.layers: Callable[..., torch.Tensor] = partial(through_layers, self._language)
        """The layers of the language model, as ``through_layers`` runs them one by one, or as graphs."""

    def hidden_states(self, row: Row, features: Mapping[bytes, Features]) -> torch.Tensor:
        """[T, H] of every slot of a row, after the last norm.

        ``row`` and the ``features`` of all of its images, by key, are on the device.
        """
        in_order = [features[image.key] for image in row.images]
        embeds = self._language.get_input_embeddings()(row.ids)
        images = torch.cat([image.embeds for image in in_order]).to(embeds.dtype)
        layers = zip(*(image.deepstack for image in in_order), strict=True)
        return self.layers(
            embeds.index_copy(0, row.image_slots, images),
            row.position_ids,
            row.attention,
            row.image_slots,
            [torch.cat(layer) for layer in layers],
        )


def through_layers(
    language_model: nn.Module,
    embeds: torch.Tensor,
    position_ids: torch.Tensor,
    attention: TrieAttention,
    image_slots: torch.Tensor,
    deepstack: Sequence[torch.Tensor],
) -> torch.Tensor:
    """Embeddings [T, H] -> hidden states [T, H] of a packed row; ``deepstack[n]`` [image tokens, H] joins layer n.

    The layers are transformers' own, the loop over them is not: transformers adds DeepStack features by a mask, and the
    host would wait for the device to count what the mask selects.
    """
    model: Any = language_model
    hidden = embeds[None]
    rotary = model.rotary_emb(hidden, position_ids)
    for number, layer in enumerate(model.layers):
        hidden = layer(hidden, position_embeddings=rotary, trie=attention)
        if number < len(deepstack):
            at_images = hidden.index_select(1, image_slots) + deepstack[number].to(hidden.dtype)
            hidden = hidden.index_copy(1, image_slots, at_images)
    normed: torch.Tensor = model.norm(hidden)
    return normed[0]
