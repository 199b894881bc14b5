"""A checkpoint as a source of scores: which devices, which dtype, described, loaded and warmed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image as PILImage

from jrm_service.errors import CheckpointError
from jrm_service.scoring.backend import Backend
from jrm_service.scoring.planner import BatchCost, unshared_tokens
from jrm_service.scoring.types import Score, ServedModel

from .checkpoint import Checkpoint, open_checkpoint
from .devices import resolve_device
from .engine import TrieScorer
from .scorer import CheckpointPreparer, PlainScorer
from .tiny import cached_tiny_checkpoint
from .trie import shared_tokens

_SCORERS: dict[str, Callable[..., Backend[Any]]] = {"trie": TrieScorer, "plain": PlainScorer}
_COSTS: dict[str, BatchCost] = {"trie": shared_tokens, "plain": unshared_tokens}
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class CheckpointSource:
    """An opened checkpoint with the devices that it will run on."""

    def __init__(self, checkpoint: Checkpoint, devices: Sequence[str], dtype: str, engine: str) -> None:
        self.checkpoint = checkpoint
        self.engine = engine
        self.devices = [resolve_device(device) for device in devices]
        on_gpu = all(device.startswith("cuda") for device in self.devices)
        self.dtype = ("bfloat16" if on_gpu else "float32") if dtype == "auto" else dtype
        self.preparer = CheckpointPreparer(checkpoint)

    @cached_property
    def served(self) -> ServedModel:
        """Name, fingerprint and summary. Reads every weight once, for the fingerprint."""
        description = describe(self.checkpoint) | {
            "device": ",".join(self.devices),
            "dtype": self.dtype,
            "engine": self.engine,
        }
        return ServedModel(self.checkpoint.manifest.name, self.checkpoint.fingerprint, description)

    @property
    def cost(self) -> BatchCost:
        """What a batch costs against the token budget."""
        return _COSTS[self.engine]

    def load(self) -> list[Backend[Any]]:
        """One warm backend per device. Raises CheckpointError when a weight or a first score is not finite."""
        scorer = _SCORERS[self.engine]
        backends = [scorer(self.checkpoint, device, _DTYPES[self.dtype]) for device in self.devices]
        blank = self.preparer.image(PILImage.new("RGB", (64, 64), "gray"))
        for backend in backends:
            (outcome,) = backend.score(backend.collate([self.preparer.candidate(blank, blank, "warm up")])).outcomes
            if not isinstance(outcome, Score) or not outcome.finite:
                raise CheckpointError(
                    [f"{self.checkpoint.path.name}: the first score on {backend.device} is {outcome}"]
                )
        return backends


def open_source(path: Path | None, devices: Sequence[str], dtype: str, engine: str) -> CheckpointSource:
    """Open a checkpoint folder, or the bundled tiny one. Raises CheckpointError."""
    return CheckpointSource(open_checkpoint(path or cached_tiny_checkpoint()), devices, dtype, engine)


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a checkpoint is, as plain data: for ``jrm inspect`` and ``/v1/info``. No paths."""
    manifest, config, spec = checkpoint.manifest, checkpoint.config, checkpoint.image_spec
    text, vision = config.text_config, config.vision_config
    return {
        "backbone": {
            "architecture": "Qwen3-VL",
            "parameters": checkpoint.parameters,
            "hidden_size": text.hidden_size,
            "layers": text.num_hidden_layers,
            "vocabulary": text.vocab_size,
            "context": text.max_position_embeddings,
            "vision_layers": vision.depth,
            "vision_hidden_size": vision.hidden_size,
            "tied_embeddings": config.tie_word_embeddings,
            "stored_as": sorted({header.dtype for header in checkpoint.weights.values()}),
        },
        "dimensions": manifest.dimensions,
        "passes": [{"parts": one.parts, "read": one.read, "characters": len(one.text)} for one in manifest.passes],
        "heads": {name: head.model_dump() for name, head in manifest.heads.items()},
        "reward": {"combine": manifest.reward.combine, "weights": manifest.pooled_weights},
        "reward_token": manifest.reward_token,
        "image": {
            "min_pixels": spec.min_pixels,
            "max_pixels": spec.max_pixels,
            "resample": spec.resample,
            "pixels_per_token": spec.factor**2,
        },
        "provenance": manifest.provenance,
    }
