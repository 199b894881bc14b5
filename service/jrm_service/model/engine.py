"""The trie scorer: a batch as packed rows in which every shared beginning is computed once.

The layers are transformers' own. Only the attention call is ours, registered under a name of its own, and it is told
who sees what through a keyword argument that transformers hands down untouched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, Qwen3VLModel

from jrm_service.errors import CandidateError
from jrm_service.images import preprocess
from jrm_service.scoring.backend import Scored
from jrm_service.scoring.types import Candidate, Image, Score, Text

from .checkpoint import Checkpoint, load_model
from .devices import on_device
from .features import FeatureCache, Features
from .heads import RewardHeads, to_score
from .trie import Trie, attention_groups, build_trie, positions, split_rows

ATTENTION = "jrm_trie"
FEATURE_CACHE_BYTES = 2**30
CPU_ROW_TOKENS = 2048  # longer packed rows fall out of a CPU's cache: docs/performance.md has the sweep


@dataclass(frozen=True, slots=True)
class TrieAttention:
    """Who sees what in a packed row, as tensors: nodes of equal length and context are attended to in one call.

    ``queries`` int64 [T] are the row's slots in the order of the calls, ``restore`` int64 [T] puts results back in
    packed order; ``keys`` int64 [K] are the slots that the queries see. Call n covers ``shapes[n]``: nodes, queries of
    each and keys of each, under ``masks[n]`` bool [queries, keys].
    """

    queries: torch.Tensor
    restore: torch.Tensor
    keys: torch.Tensor
    shapes: list[tuple[int, int, int]]
    masks: list[torch.Tensor]

    @classmethod
    def of(cls, trie: Trie) -> TrieAttention:
        """Describe a trie, on the host."""
        groups = attention_groups(trie)
        queries = torch.from_numpy(np.concatenate([group.queries.ravel() for group in groups]))
        return cls(
            queries=queries,
            restore=queries.argsort(),
            keys=torch.from_numpy(np.concatenate([group.keys.ravel() for group in groups])),
            shapes=[(*group.queries.shape, group.keys.shape[1]) for group in groups],
            masks=[_causal(group.queries.shape[1], group.keys.shape[1]) for group in groups],
        )

    def to(self, device: str | torch.device) -> TrieAttention:
        """The same on a device."""
        queries, restore, keys = (t.to(device, non_blocking=True) for t in (self.queries, self.restore, self.keys))
        masks = [mask.to(device, non_blocking=True) for mask in self.masks]
        return TrieAttention(queries, restore, keys, self.shapes, masks)


def attend(
    module: torch.nn.Module,
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
    # [n, heads, d]: a call's share is then contiguous.
    queries = torch.split(query[0].transpose(0, 1).index_select(0, trie.queries), [n * q for n, q, _ in trie.shapes])
    keys, values = (
        torch.split(tensor[0].transpose(0, 1).index_select(0, trie.keys), [n * k for n, _, k in trie.shapes])
        for tensor in (key, value)
    )
    attended = []
    for q, k, v, (nodes, _, _), mask in zip(queries, keys, values, trie.shapes, trie.masks, strict=True):
        q, k, v = (tensor.view(nodes, -1, *tensor.shape[1:]).transpose(1, 2) for tensor in (q, k, v))
        one = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling, enable_gqa=True)
        attended.append(one.transpose(1, 2).flatten(0, 1))
    return torch.cat(attended).index_select(0, trie.restore)[None], None


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, lambda *_args, **_kwargs: None)


@dataclass(frozen=True, slots=True)
class Row:
    """One packed row on the host.

    ``candidates`` are indices into the batch. ``ids`` int64 [T] has the image token at image slots, ``position_ids`` is
    int64 [3, 1, T]; ``images`` stand in packed order; ``patches`` float32 [P, D] are of those that were not cached when
    the row was built, by key; ``reads`` are the packed positions of the reward tokens, pass by pass for each candidate.
    """

    candidates: list[int]
    ids: torch.Tensor
    position_ids: torch.Tensor
    attention: TrieAttention
    images: list[Image]
    patches: dict[bytes, torch.Tensor]
    reads: torch.Tensor
    sources: frozenset[bytes]


class TrieScorer:
    """Implements ``Backend``: every distinct segment path once, every distinct image through the vision tower once."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: str,
        dtype: torch.dtype,
        *,
        row_tokens: int | None = None,
        feature_cache_bytes: int = FEATURE_CACHE_BYTES,
    ) -> None:
        """Loads the weights; ``row_tokens`` is about what one row costs (``shared_tokens``). Raises CheckpointError."""
        self.device = device
        self.features = FeatureCache(feature_cache_bytes)
        self._row_tokens = row_tokens or (CPU_ROW_TOKENS if device == "cpu" else 2**62)
        self._checkpoint = checkpoint
        self._model: Qwen3VLModel
        self._heads: RewardHeads
        self._model, self._heads = load_model(checkpoint, device, dtype)
        self._model.language_model.config._attn_implementation = ATTENTION

    # --- host ---------------------------------------------------------------------------------------------------------

    def collate(self, candidates: Sequence[Candidate]) -> list[Row]:
        """Build the packed rows of a batch; patches only of images whose features are not cached."""
        return [self._row(indices, candidates) for indices in split_rows(candidates, self._row_tokens)]

    def _row(self, indices: list[int], candidates: Sequence[Candidate]) -> Row:
        spec, image_id = self._checkpoint.image_spec, self._checkpoint.config.image_token_id
        trie = build_trie([sequence.segments for n in indices for sequence in candidates[n].sequences])
        ids = [np.array(s.ids) if isinstance(s, Text) else np.full(s.tokens, image_id) for s in trie.segments]
        images = [segment for segment in trie.segments if isinstance(segment, Image)]
        new = {image.key: image for image in images if image.key not in self.features}
        return Row(
            candidates=indices,
            ids=torch.from_numpy(np.concatenate(ids)),
            position_ids=torch.from_numpy(positions(trie, spec.factor))[:, None],
            attention=TrieAttention.of(trie),
            images=images,
            patches={key: torch.from_numpy(preprocess.patches(image.pixels, spec)) for key, image in new.items()},
            reads=torch.tensor(trie.reads),
            sources=frozenset(candidates[n].source.key for n in indices),
        )

    # --- device -------------------------------------------------------------------------------------------------------

    def score(self, batch: list[Row]) -> Scored:
        """Score every row. Raises WorkerLost as ``Backend`` does."""
        with on_device(self.device):
            return self._score(batch)

    @torch.inference_mode()
    def _score(self, rows: list[Row]) -> Scored:
        outcomes: dict[int, Score | CandidateError] = {}
        encoded = used = 0
        for row in rows:
            features, new = self._image_features(row)
            outcomes |= zip(row.candidates, self._scores(row, self._hidden_states(row, features)), strict=True)
            encoded += new
            used += len(features)
        return Scored(
            outcomes=[outcomes[n] for n in range(len(outcomes))],
            tokens_computed=sum(row.ids.numel() for row in rows),
            images_encoded=encoded,
            images_reused=used - encoded,
            feature_bytes=self.features.nbytes,
        )

    def _scores(self, row: Row, hidden: torch.Tensor) -> list[Score]:
        """Heads on each candidate alone, so that its score has no neighbours; one transfer to the host for all."""
        manifest = self._checkpoint.manifest
        by_candidate = hidden.float().view(len(row.candidates), len(manifest.passes), -1)
        outputs = [self._heads(list(h_of_pass)) for h_of_pass in by_candidate]
        names = manifest.dimensions
        widths = [outputs[0][name].numel() for name in names]
        table = torch.stack([torch.cat([output[name] for name in names]) for output in outputs]).cpu()
        return [
            to_score(manifest, {name: v.tolist() for name, v in zip(names, values.split(widths), strict=True)})
            for values in table
        ]

    def _hidden_states(self, row: Row, features: dict[bytes, Features]) -> torch.Tensor:
        """**h** [reads, H] of every reward token (Eq. 1), after the last norm."""
        ids = row.ids.to(self.device, non_blocking=True)
        at_image = ids == self._checkpoint.config.image_token_id
        in_order = [features[image.key] for image in row.images]
        deepstack = zip(*(one.deepstack for one in in_order), strict=True)
        embeds = self._model.get_input_embeddings()(ids)
        embeds[at_image] = torch.cat([one.embeds for one in in_order]).to(embeds.dtype)
        hidden: torch.Tensor = self._model.language_model(
            inputs_embeds=embeds[None],
            position_ids=row.position_ids.to(self.device, non_blocking=True),
            attention_mask=None,
            visual_pos_masks=at_image[None],
            deepstack_visual_embeds=[torch.cat(layer) for layer in deepstack],
            use_cache=False,
            trie=row.attention.to(self.device),
        ).last_hidden_state
        return hidden[0, row.reads.to(self.device, non_blocking=True)]

    def _image_features(self, row: Row) -> tuple[dict[bytes, Features], int]:
        """Features of every image of a row by key, and how many of them were not cached: those in one call."""
        spec = self._checkpoint.image_spec
        distinct = {image.key: image for image in row.images}
        cached = {key: self.features.get(key) for key in distinct}
        found = {key: features for key, features in cached.items() if features is not None}
        new = [image for key, image in distinct.items() if key not in found]
        if not new:
            return found, 0
        pixels = [
            row.patches[image.key]
            if image.key in row.patches  # else it was evicted since the row was built
            else torch.from_numpy(preprocess.patches(image.pixels, spec))
            for image in new
        ]
        grids = torch.tensor([preprocess.grid(image.pixels, spec) for image in new])
        output = self._model.get_image_features(
            torch.cat(pixels).to(self.device, non_blocking=True), grids.to(self.device), return_dict=True
        )
        sizes = [image.tokens for image in new]
        # transformers 5.16 leaves the DeepStack features of all images in one piece, later versions split them.
        layers = [torch.split(f, sizes) if isinstance(f, torch.Tensor) else f for f in output.deepstack_features]
        for image, embeds, *deepstack in zip(new, output.pooler_output, *layers, strict=True):
            found[image.key] = Features(embeds, tuple(deepstack))
            if image.key in row.sources:
                # A copy: a view would keep the whole call's output alive for as long as one image is cached.
                self.features.put(image.key, Features(embeds.clone(), tuple(layer.clone() for layer in deepstack)))
        return found, len(new)


def _causal(queries: int, keys: int) -> torch.Tensor:
    """bool [q, k]: the last q keys are the queries' own, and a query sees everything up to itself."""
    return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
