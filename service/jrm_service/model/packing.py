"""Packed rows: the trie of a few candidates as tensors, built on the host while the device works on the row before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from jrm_service.scoring.types import Candidate, Image, Text

from .attention import TrieAttention
from .trie import build_trie, positions
from .varlen import Kernel
from .vision import ImageInputs


@dataclass(frozen=True, slots=True)
class Row:
    """One packed row.

    ``candidates`` are indices into the batch. ``ids`` int64 [T] has the image token at image slots, ``position_ids`` is
    int64 [3, 1, T]; ``images`` stand in packed order, at ``image_slots`` int64 [image tokens]; ``inputs`` are of those
    that were not cached when the row was built, by key, and stay on the host; ``reads`` int64 are the packed positions
    of the reward tokens, pass by pass for each candidate.
    """

    candidates: list[int]
    ids: torch.Tensor
    position_ids: torch.Tensor
    attention: TrieAttention
    images: list[Image]
    image_slots: torch.Tensor
    inputs: dict[bytes, ImageInputs]
    reads: torch.Tensor
    sources: frozenset[bytes]

    def to(self, device: str | torch.device) -> Row:
        """The same on a device, without waiting for it."""
        ids, position_ids, image_slots, reads = (
            tensor.to(device, non_blocking=True)
            for tensor in (self.ids, self.position_ids, self.image_slots, self.reads)
        )
        attention = self.attention.to(device)
        return replace(
            self, ids=ids, position_ids=position_ids, image_slots=image_slots, reads=reads, attention=attention
        )

    def pin(self) -> Row:
        """The same in memory from which a GPU copies without the host waiting."""
        return replace(
            self,
            ids=self.ids.pin_memory(),
            position_ids=self.position_ids.pin_memory(),
            image_slots=self.image_slots.pin_memory(),
            reads=self.reads.pin_memory(),
            attention=self.attention.pin(),
            inputs={key: inputs.pin() for key, inputs in self.inputs.items()},
        )


def pack(
    indices: list[int],
    candidates: Sequence[Candidate],
    *,
    factor: int,
    image_token_id: int,
    kernel: Kernel | None = None,
) -> Row:
    """The row of the candidates at ``indices``, without inputs of images. ``factor`` is pixels a side of a token."""
    trie = build_trie([sequence.segments for n in indices for sequence in candidates[n].sequences])
    segments = list(trie.segments)
    ids = [np.array(s.ids) if isinstance(s, Text) else np.full(s.tokens, image_token_id) for s in segments]
    at_image = np.concatenate([np.full(segment.tokens, isinstance(segment, Image)) for segment in segments])
    return Row(
        candidates=indices,
        ids=torch.from_numpy(np.concatenate(ids)),
        position_ids=torch.from_numpy(positions(trie, factor))[:, None],
        attention=TrieAttention.of(trie, kernel),
        images=[segment for segment in segments if isinstance(segment, Image)],
        image_slots=torch.from_numpy(np.flatnonzero(at_image)),
        inputs={},
        reads=torch.tensor(trie.reads),
        sources=frozenset(candidates[n].source.key for n in indices),
    )
