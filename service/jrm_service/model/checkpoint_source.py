"""A checkpoint on its devices: resolves devices and dtype, loads, warms up, self-tests, describes."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image as PILImage

from jrm_service.errors import CandidateError, CheckpointError
from jrm_service.scoring.backend import Backend, SleepingBackend
from jrm_service.scoring.planner import BatchCost
from jrm_service.scoring.preparing import CheckpointPreparer
from jrm_service.scoring.token_budget import DEFAULT_TOKENS, fitting_tokens
from jrm_service.scoring.types import Candidate, Score, ServedModel, joined_kernels

from . import golden
from .checkpoint import Checkpoint, open_checkpoint
from .devices import GPUMemory, resolve_device
from .engine import TrieScorer
from .kernels import EAGER, IN_DTYPE, IN_FP8, IN_SIMULATED_FP8
from .matrix_products import require_fp8
from .preprocessing_version import PIPELINE_VERSION, drift, require_pinned
from .scorer import PlainScorer
from .trie import BATCH_COSTS
from .weights import weight_bytes

logger = logging.getLogger(__name__)

BUNDLED = Path(__file__).parent / "bundled" / "jrm-tiny"
"""The checkpoint in the package, which is served when none is given. It is only ever read."""

_SCORERS: dict[str, Callable[..., TrieScorer | PlainScorer]] = {"trie": TrieScorer, "plain": PlainScorer}
_SAMPLE_GROUP = 12  # edits: G of the paper
_BLANK_SIDE = 64  # pixels
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class CheckpointSource:
    """An opened checkpoint, the devices that it will run on, and the golden scores that it is tested against."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        devices: Sequence[str],
        dtype: str,
        engine: str,
        tests: golden.Golden | None,
        quantize: str = "none",
        *,
        fused_layers: bool = True,
        cuda_graphs: bool = True,
    ) -> None:
        self.checkpoint = checkpoint
        self.tests = tests
        self.engine = engine
        self.devices = [resolve_device(device) for device in devices]
        on_gpu = all(device.startswith("cuda") for device in self.devices)
        self.dtype = ("bfloat16" if on_gpu else "float32") if dtype == "auto" else dtype
        if quantize == "fp8":
            if not fused_layers:
                raise CheckpointError(["quantize: fp8 layers are fused ones; leave out --fused-layers false"])
            for device in self.devices:
                require_fp8(device, dtype, engine)
        self.quantize = quantize
        self._fused_layers = fused_layers
        self._cuda_graphs = cuda_graphs
        self.preparer = CheckpointPreparer(checkpoint)

    @property
    def precision(self) -> str:
        """What scores are computed in: ``fp8``, or the dtype of the backbone."""
        return self.dtype if self.quantize == "none" else self.quantize

    @property
    def cost(self) -> BatchCost:
        """The cost of a batch in tokens of the budget."""
        return BATCH_COSTS[self.engine]

    def load(self, *, hashed: bool = True) -> tuple[ServedModel, Sequence[SleepingBackend[Any]]]:
        """Return the served model and one backend per device, warm and with the golden scores verified.

        Reads every weight once for each device, and once more for the fingerprint; without ``hashed`` the fingerprint
        is left empty, because another worker computes it. Raises CheckpointError if a weight or a first score is not
        finite, if the golden scores are of another checkpoint, or if one of them is off.
        """
        if self.tests is not None and hashed:
            golden.require_fingerprint(self.tests, self.checkpoint)
        backends = [self._scorer(device) for device in self.devices]
        for backend in backends:
            self._warm(backend)
        model = self.described(
            hashed=hashed,
            quantize=self.quantize,
            precision=self.precision,
            self_test=self._self_test(backends),
            engine=self.engine,
            kernels=joined_kernels([backend.kernels for backend in backends]),
        )
        return model, backends

    def _scorer(self, device: str) -> TrieScorer | PlainScorer:
        options: dict[str, Any] = {}
        if self.engine == "trie":
            options = {"arithmetic": IN_FP8 if self.quantize == "fp8" else IN_DTYPE, "graphs": self._cuda_graphs}
            if not self._fused_layers:
                options["variants"] = ()
        return _SCORERS[self.engine](self.checkpoint, device, _DTYPES[self.dtype], **options)

    def described(self, *, hashed: bool = True, **facts: Any) -> ServedModel:
        """Return the served model, with ``facts`` in its description. Reads every weight once, for the fingerprint."""
        description = describe(self.checkpoint) | {"device": ",".join(self.devices), "dtype": self.dtype} | facts
        return ServedModel(self.checkpoint.manifest.name, self.checkpoint.fingerprint if hashed else "", description)

    def batch_tokens(self, backends: Sequence[Backend[Any]], *, spared: float = 0.0, sharing: int = 1) -> int:
        """The token budget of a batch: what fits on every GPU, derived from the memory that a batch of full size takes.

        ``backends`` are warm; ``spared`` is the share of a GPU's memory that is left for vLLM, ``sharing`` how many
        worker processes share the rest, including this one. On a CPU, and for the engine ``plain``, which runs one
        sequence at a time, it is DEFAULT_TOKENS.
        """
        budgets = [
            fitting_tokens(
                backend,
                self.sample(),
                self.cost,
                GPUMemory(backend.device, spared),
                kept=backend.features.room,
                workers=self.devices.count(backend.device) * sharing,
            )
            for backend in backends
            if isinstance(backend, TrieScorer) and backend.device.startswith("cuda")
        ]
        return min(budgets, default=DEFAULT_TOKENS)

    def sample(self) -> list[Candidate]:
        """A group with images of full size: at least one candidate, at most a usual group or what fits DEFAULT_TOKENS.

        If two images of full size do not fit into the model's context, their sides are halved until they do.
        """
        side = math.isqrt(self.checkpoint.image_spec.max_pixels)
        while side > _BLANK_SIDE:
            with suppress(CandidateError):
                return self._group(side)
            side //= 2
        return self._group(_BLANK_SIDE)

    def _group(self, side: int) -> list[Candidate]:
        source, *edits = (_gray(side, shade) for shade in range(_SAMPLE_GROUP + 1))
        seen = [self.preparer.image(source)] * min(self.preparer.max_sources, 1)
        group: list[Candidate] = []
        for edited in edits:
            candidate = self.preparer.candidate(seen, self.preparer.image(edited), "warm up")
            if group and self.cost([*group, candidate]) > DEFAULT_TOKENS:
                break
            group.append(candidate)
        return group

    def _warm(self, backend: Backend[Any]) -> None:
        blank = self.preparer.image(_gray(_BLANK_SIDE, 128))
        candidate = self.preparer.candidate([blank] * min(self.preparer.max_sources, 1), blank, "warm up")
        (outcome,) = backend.score(backend.collate([candidate])).outcomes
        if not isinstance(outcome, Score) or not outcome.finite:
            raise CheckpointError([f"{self.checkpoint.path.name}: the first score on {backend.device} is {outcome}"])

    def _self_test(self, backends: Sequence[Backend[Any]]) -> dict[str, Any] | None:
        """The worst result of all devices, as ``/v1/info`` shows it; None if nothing was compared."""
        if self.tests is None:
            return None
        results = [golden.check(self.tests, self.preparer, backend, self.precision) for backend in backends]
        worst = max(results, key=lambda result: result.max_deviation)
        logger.info(
            "self-test: %d golden cases on %s in %s, largest deviation %.2g, allowed %g",
            worst.cases,
            ",".join(self.devices),
            self.precision,
            worst.max_deviation,
            worst.tolerance,
        )
        return asdict(worst)


def _gray(side: int, shade: int) -> PILImage.Image:
    return PILImage.new("RGB", (side, side), (shade, shade, shade))


def open_source(
    path: Path | None,
    devices: Sequence[str],
    dtype: str,
    engine: str,
    *,
    quantize: str = "none",
    fused_layers: bool = True,
    cuda_graphs: bool = True,
    self_test: bool = True,
    allow_pipeline_drift: bool = False,
) -> CheckpointSource:
    """Open a checkpoint folder, or the bundled one, with its golden scores unless ``self_test`` is off.

    Raises CheckpointError, and PipelineDrift if the installed libraries produce other pixels or token ids than the
    pinned ones, unless ``allow_pipeline_drift``.
    """
    require_pinned(allow_drift=allow_pipeline_drift)
    checkpoint = open_checkpoint(path or BUNDLED)
    tests = golden.read(checkpoint) if self_test else None
    if tests is None:
        logger.info("no self-test: %s", f"{golden.FILE} is not there" if self_test else "it is switched off")
    return CheckpointSource(
        checkpoint, devices, dtype, engine, tests, quantize, fused_layers=fused_layers, cuda_graphs=cuda_graphs
    )


def scorer_in(precision: str, checkpoint: Checkpoint, device: str = "cpu") -> TrieScorer:
    """The engine in float32, bfloat16, float16 or fp8, for comparing its scores: neither warm nor tested.

    On a CPU, fp8 is simulated: the numbers of the language model's linear layers are rounded to fp8 and multiplied in
    float32. Raises CheckpointError for a GPU that has no fp8, and ValueError for another precision.
    """
    if precision != "fp8":
        if precision not in _DTYPES:
            raise ValueError(f"precision '{precision}': must be one of {', '.join([*_DTYPES, 'fp8'])}")
        return TrieScorer(checkpoint, device, _DTYPES[precision])
    if device == "cpu":
        return TrieScorer(checkpoint, device, torch.float32, arithmetic=IN_SIMULATED_FP8, variants=[EAGER])
    require_fp8(device, "bfloat16", "trie")
    return TrieScorer(checkpoint, device, torch.bfloat16, arithmetic=IN_FP8)


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """Describe a checkpoint as plain data, without paths: for ``jrm inspect`` and ``/v1/info``."""
    manifest, config, spec = checkpoint.manifest, checkpoint.config, checkpoint.image_spec
    text, vision = config.text_config, config.vision_config
    return {
        "backbone": {
            "architecture": checkpoint.family.name,
            "parameters": checkpoint.parameters,
            "hidden_size": text.hidden_size,
            "layers": text.num_hidden_layers,
            "vocabulary": text.vocab_size,
            "context": text.max_position_embeddings,
            "vision_layers": vision.depth,
            "vision_hidden_size": checkpoint.family.vision_width(vision),
            "tied_embeddings": config.tie_word_embeddings,
            "stored_as": sorted({header.dtype for header in checkpoint.weights.values()}),
        },
        "weight_bytes": weight_bytes(checkpoint.weights, checkpoint.heads),
        "positions": manifest.positions,
        "dimensions": manifest.dimensions,
        "passes": [
            {"parts": pass_.parts, "read": pass_.read, "characters": len(pass_.text)} for pass_ in manifest.passes
        ],
        "heads": {name: head.model_dump() for name, head in manifest.heads.items()},
        "reward": manifest.reward.model_dump(include={"combine", "normalize"}) | {"weights": manifest.pooled_weights},
        "reward_token": manifest.reward_token,
        "image": {
            "min_pixels": spec.min_pixels,
            "max_pixels": spec.max_pixels,
            "resample": spec.resample,
            "max_sources": manifest.max_sources,
            "pixels_per_token": spec.factor**2,
        },
        "pipeline": {"version": PIPELINE_VERSION, "drift": drift() or None},
        "provenance": manifest.provenance,
    }
