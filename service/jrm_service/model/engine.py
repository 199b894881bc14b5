"""The trie scorer: a batch becomes packed rows in which every shared beginning is computed once.

The layers are transformers' own; ``attention`` has our part of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from jrm_service.errors import CandidateError, CheckpointError
from jrm_service.scoring.backend import BatchResult, OutOfMemory
from jrm_service.scoring.types import Candidate, Score

from .checkpoint import Checkpoint, load_model
from .devices import bring_back, on_device, put_away, release_memory
from .families import text_head_dim
from .features import FeatureCache, Features
from .graphs import find_graphs
from .heads import to_score
from .kernels import IN_DTYPE, Arithmetic, KernelVariant, fuse, variants_on
from .rows import PackedModel, Row, pack
from .trie import split_rows
from .varlen import Shape, find_kernel

FEATURE_CACHE_BYTES = 2**30
_DEEPSTACK = "deepstack_visual_indexes"  # of a vision tower whose features are added to language layers
CPU_ROW_TOKENS = 2048  # longer packed rows take more memory and are hardly faster: docs/performance.md has the sweep


@dataclass(frozen=True, slots=True)
class ScoringRow:
    """A packed row of candidates on the host.

    ``candidates`` are indices into the batch; the sequences of ``packed`` are theirs, pass by pass for each.
    ``sources`` are the keys of their source images. ``inputs`` are the pixels, as ``VisionTower`` takes them, of the
    images that were not cached when the row was built, by key.
    """

    candidates: list[int]
    sources: frozenset[bytes]
    packed: Row
    inputs: dict[bytes, torch.Tensor]


class TrieScorer:
    """Implements ``SleepingBackend``: every distinct segment path, and every distinct image, is computed once."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: str,
        dtype: torch.dtype,
        *,
        row_tokens: int | None = None,
        feature_cache_bytes: int = FEATURE_CACHE_BYTES,
        arithmetic: Arithmetic = IN_DTYPE,
        variants: Sequence[KernelVariant] | None = None,
        graphs: bool = True,
    ) -> None:
        """Load the weights. Raises CheckpointError.

        ``row_tokens``: about the cost of a row, see ``split_rows``. ``arithmetic``: that of the language model's
        products. ``variants``: of the fused layers to try, see ``fuse``. ``graphs``: whether to record graphs for
        short rows, see ``find_graphs``.
        """
        self.device = device
        self.features = FeatureCache(feature_cache_bytes)
        self._row_tokens = row_tokens or (CPU_ROW_TOKENS if device == "cpu" else 2**62)
        self._checkpoint = checkpoint
        kernel = find_kernel(device, dtype, _shapes(checkpoint))
        self._model, self._heads = load_model(checkpoint, device, dtype)
        self.packed = PackedModel(self._model, checkpoint.image_spec, kernel)
        self.kernels = fuse(
            self._model,
            device=device,
            dtype=dtype,
            kernel=kernel,
            variants=variants_on(device) if variants is None else variants,
            arithmetic=arithmetic,
        )
        self._one_by_one = self.packed.layers
        if graphs and self._record():
            self.kernels = self.kernels | {"graphs": "recorded"}

    def _record(self) -> bool:
        """Run short rows as graphs from now on, if they compute the same."""
        deepstack = len(getattr(self._model.visual, _DEEPSTACK, ()))
        graphs = find_graphs(self._model.language_model, self.packed.kernel, self.device, deepstack)
        self.packed.layers = graphs or self._one_by_one
        return graphs is not None

    # --- host ---------------------------------------------------------------------------------------------------------

    def collate(self, candidates: Sequence[Candidate]) -> list[ScoringRow]:
        """Build the packed rows of a batch, with inputs only for images whose features are not cached."""
        return [self._row(indices, candidates) for indices in split_rows(candidates, self._row_tokens)]

    def _row(self, indices: list[int], candidates: Sequence[Candidate]) -> ScoringRow:
        packed = pack(
            [sequence.segments for n in indices for sequence in candidates[n].sequences],
            factor=self._checkpoint.image_spec.factor,
            image_token_id=self._checkpoint.config.image_token_id,
            position_rule=self._checkpoint.manifest.positions,
            kernel=self.packed.kernel,
        )
        new = {key: image for key, image in packed.distinct_images.items() if key not in self.features}
        inputs = {key: self.packed.vision.inputs(image.pixels) for key, image in new.items()}
        if self.device.startswith("cuda"):
            packed, inputs = packed.pin(), {key: pixels.pin_memory() for key, pixels in inputs.items()}
        sources = frozenset(key for n in indices for key in candidates[n].source_keys)
        return ScoringRow(indices, sources, packed, inputs)

    # --- device -------------------------------------------------------------------------------------------------------

    def score(self, batch: list[ScoringRow]) -> BatchResult:
        """Score every row. Raises WorkerLost and OutOfMemory as ``Backend`` does.

        Computing takes precedence over caching: before a batch counts as too large, the cached features are dropped and
        it is tried once more.
        """
        try:
            return self._guarded(batch)
        except OutOfMemory:
            if not self.features.clear():
                raise
        # Outside of the handler: an exception that is still handled keeps the tensors of its frames.
        release_memory(self.device)
        return self._guarded(batch)

    def _guarded(self, rows: list[ScoringRow]) -> BatchResult:
        with on_device(self.device):
            return self._score(rows)

    @torch.inference_mode()
    def _score(self, rows: list[ScoringRow]) -> BatchResult:
        tables: list[torch.Tensor] = []
        encoded = used = 0
        for row in rows:
            features, new = self._image_features(row)
            tables.append(self.outputs(row.packed.to(self.device), features))
            encoded += new
            used += len(features)
        numbers = torch.cat(tables).cpu()  # the one place where the host waits for the device
        order = [n for row in rows for n in row.candidates]
        outcomes = dict(zip(order, self._scores(numbers), strict=True))
        return BatchResult(
            outcomes=[outcomes[n] for n in range(len(outcomes))],
            tokens_computed=sum(row.packed.ids.numel() for row in rows),
            images_encoded=encoded,
            images_reused=used - encoded,
            feature_bytes=self.features.nbytes,
        )

    def sleep(self) -> None:
        """Implements ``SleepingBackend``. Features and graphs, which hold addresses, are dropped."""
        self.features.clear()
        self.packed.vision.forget()
        self.packed.layers = self._one_by_one
        put_away((self._model, self._heads), self.device)

    def wake(self) -> None:
        """Implements ``SleepingBackend``. Raises CheckpointError if graphs cannot be recorded again."""
        with on_device(self.device):
            bring_back((self._model, self._heads), self.device)
            if self.kernels["graphs"] == "recorded" and not self._record():
                raise CheckpointError([f"{self.device}: graphs of short rows could not be recorded again"])

    def outputs(self, row: Row, features: Mapping[bytes, Features]) -> torch.Tensor:
        """Float32 [candidates, columns], see ``RewardHeads.table``; arguments are those of ``hidden_states``."""
        h = self.packed.hidden_states(row, features).index_select(0, row.reads)  # of every reward token (Eq. 1)
        return self._heads.table(h.view(-1, len(self._checkpoint.manifest.passes), h.shape[1]))

    def _scores(self, numbers: torch.Tensor) -> Iterable[Score | CandidateError]:
        """The scores of [candidates, columns], the result of ``outputs``."""
        manifest = self._checkpoint.manifest
        heads = [manifest.heads[head] for pass_ in manifest.passes for head in pass_.read.values()]
        widths = [len(head.outputs) for head in heads]
        for values in numbers:
            by_name = zip(manifest.dimensions, values.split(widths), strict=True)
            yield to_score(manifest, {name: value.tolist() for name, value in by_name})

    def _image_features(self, row: ScoringRow) -> tuple[dict[bytes, Features], int]:
        """Features of every image of a row by key, and how many of them were not cached, encoded in one call."""
        distinct = row.packed.distinct_images
        cached = {key: self.features.get(key) for key in distinct}
        by_key = {key: features for key, features in cached.items() if features is not None}
        new = [image for key, image in distinct.items() if key not in by_key]
        if not new:
            return by_key, 0
        # An image may have been evicted since the row was built.
        inputs = [
            row.inputs[image.key] if image.key in row.inputs else self.packed.vision.inputs(image.pixels)
            for image in new
        ]
        for image, features in zip(new, self.packed.vision.encode(inputs), strict=True):
            by_key[image.key] = features
            if image.key in row.sources:
                # A copy: a view would keep the whole call's output alive for as long as one image is cached.
                copied = Features(features.embeds.clone(), tuple(layer.clone() for layer in features.deepstack))
                self.features.put(image.key, copied)
        return by_key, len(new)


def _shapes(checkpoint: Checkpoint) -> list[Shape]:
    """The shapes of attention in the language model and in the vision tower."""
    text, vision = checkpoint.config.text_config, checkpoint.config.vision_config
    width = checkpoint.family.vision_width(vision)
    return [
        Shape(text.num_attention_heads, text.num_key_value_heads, text_head_dim(checkpoint.config), causal=True),
        Shape(vision.num_heads, vision.num_heads, width // vision.num_heads, causal=False),
    ]
