"""Our attention inside transformers' layers: which token sees which.

Each attention function is registered with transformers under its own name, and learns which token sees which from a
keyword argument that the layers pass on unchanged. Everything that depends on the batch is on the device already:
nothing here makes the host wait for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AttentionInterface

from .trie import Trie, attention_groups
from .varlen import Kernel, Lengths, causal_mask, masked_attention, one_by_one

ATTENTION = "jrm_trie"
IMAGE_ATTENTION = "jrm_images"


@dataclass(frozen=True, slots=True)
class TrieAttention:
    """Which tokens see which in a packed row, as tensors: nodes of equal length and context share one call.

    ``queries`` int64 [T] are the row's slots in the order of the calls, ``restore`` int64 [T] puts results back in
    packed order; ``keys`` int64 [K] are the slots that the queries see. Call n covers ``shapes[n]``: the number of
    nodes, and queries and keys of each, under ``masks[n]`` bool [queries, keys]. With a ``kernel`` there is one call
    for all nodes, with their ``lengths`` and without masks.
    """

    queries: torch.Tensor
    restore: torch.Tensor
    keys: torch.Tensor
    shapes: list[tuple[int, int, int]]
    masks: list[torch.Tensor]
    kernel: Kernel | None = None
    lengths: Lengths | None = None

    @classmethod
    def of(cls, trie: Trie, kernel: Kernel | None = None) -> TrieAttention:
        """Describe a trie, on the host."""
        groups = attention_groups(trie)
        shapes = [(*group.queries.shape, group.keys.shape[1]) for group in groups]
        queries = torch.from_numpy(np.concatenate([group.queries.ravel() for group in groups]))
        return cls(
            queries=queries,
            restore=queries.argsort(),
            keys=torch.from_numpy(np.concatenate([group.keys.ravel() for group in groups])),
            shapes=shapes,
            masks=[causal_mask(q, k) for _, q, k in shapes] if kernel is None else [],
            kernel=kernel,
            lengths=None if kernel is None else Lengths.of([(q, k) for nodes, q, k in shapes for _ in range(nodes)]),
        )

    def to(self, device: str | torch.device) -> TrieAttention:
        """The same on a device."""
        queries, restore, keys = (t.to(device, non_blocking=True) for t in (self.queries, self.restore, self.keys))
        masks = [mask.to(device, non_blocking=True) for mask in self.masks]
        lengths = None if self.lengths is None else self.lengths.to(device)
        return replace(self, queries=queries, restore=restore, keys=keys, masks=masks, lengths=lengths)

    def pin(self) -> TrieAttention:
        """The same in pinned memory, from which a GPU copies without the host waiting."""
        queries, restore, keys = (tensor.pin_memory() for tensor in (self.queries, self.restore, self.keys))
        masks = [mask.pin_memory() for mask in self.masks]
        lengths = None if self.lengths is None else self.lengths.pin()
        return replace(self, queries=queries, restore=restore, keys=keys, masks=masks, lengths=lengths)


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    trie: TrieAttention,
    **_unused: Any,
) -> tuple[torch.Tensor, None]:
    """Attention over the trie: query [1, heads, T, d], key and value [1, kv heads, T, d] -> [1, T, heads, d].

    One gather and one scatter for all calls, because training differentiates through them: the gradient of a gather is
    as large as the row.
    """
    # [n, heads, d]: the part of each call is then contiguous.
    queries = query[0].transpose(0, 1).index_select(0, trie.queries)
    keys, values = (tensor[0].transpose(0, 1).index_select(0, trie.keys) for tensor in (key, value))
    if trie.kernel is not None and trie.lengths is not None:
        attended = trie.kernel(queries, keys, values, trie.lengths, causal=True, scale=scaling)
    else:
        attended = _by_shape(queries, keys, values, trie, scaling)
    return attended.index_select(0, trie.restore)[None], None


def _by_shape(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, trie: TrieAttention, scale: float
) -> torch.Tensor:
    """Attention with one call for each shape of nodes."""
    every_q = torch.split(queries, [n * q for n, q, _ in trie.shapes])
    every_k, every_v = (torch.split(tensor, [n * k for n, _, k in trie.shapes]) for tensor in (keys, values))
    attended = []
    for q, k, v, (nodes, _, _), mask in zip(every_q, every_k, every_v, trie.shapes, trie.masks, strict=True):
        q, k, v = (tensor.view(nodes, -1, *tensor.shape[1:]).transpose(1, 2) for tensor in (q, k, v))
        output = masked_attention(q, k, v, mask, scale)
        attended.append(output.transpose(1, 2).flatten(0, 1))
    return torch.cat(attended)


@dataclass(frozen=True, slots=True)
class PackedImages:
    """The images of one call of the vision tower: the patches of each, and the kernel for them."""

    lengths: Lengths
    kernel: Kernel


def attend_within_images(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    images: PackedImages,
    **_unused: Any,
) -> tuple[torch.Tensor, None]:
    """Every patch sees its own image: query, key and value [1, heads, P, d] -> [1, P, heads, d]."""
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    return images.kernel(q, k, v, images.lengths, causal=False, scale=scaling)[None], None


def packed_images(patches: Sequence[int], device: torch.device, kernel: Kernel | None) -> PackedImages:
    """Images of these numbers of patches, one after the other. Without a kernel, each has its own call."""
    lengths = Lengths.of([(count, count) for count in patches])
    if kernel is None:
        return PackedImages(lengths, one_by_one)
    return PackedImages((lengths.pin() if device.type == "cuda" else lengths).to(device), kernel)


AttentionInterface.register(ATTENTION, attend)
AttentionInterface.register(IMAGE_ATTENTION, attend_within_images)
