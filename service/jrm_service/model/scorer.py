"""The plain scorer: each sequence alone through transformers' own forward, then the heads in float32.

It is the reference that every faster path is tested against and the honest baseline of the benchmarks: nothing is
shared, padded, packed or cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from jrm_service.errors import CandidateError
from jrm_service.images import preprocess
from jrm_service.scoring.backend import BatchResult
from jrm_service.scoring.types import Candidate, Image, Score, TokenSequence

from .checkpoint import Checkpoint, load_model
from .devices import bring_back, on_device, put_away
from .heads import RewardHeads, to_score
from .kernels import PLAIN
from .vision import use_patch_product


@dataclass(frozen=True, slots=True)
class SequenceInputs:
    """One sequence as arguments of the backbone's forward, on the host.

    ``input_ids`` and ``mm_token_type_ids`` are int64 [1, T]; ``pixel_values`` float32
    [patches, 3 · time · patch · patch]; ``image_grid_thw`` int64 [images, 3]; ``read`` is the position of the reward
    token. ``position_ids`` int64 [3, 1, T] if they are sequential: by default the forward counts images in two
    dimensions.
    """

    input_ids: torch.Tensor
    mm_token_type_ids: torch.Tensor
    pixel_values: torch.Tensor
    image_grid_thw: torch.Tensor
    position_ids: torch.Tensor | None
    read: int


class PlainScorer:
    """Implements ``SleepingBackend``: one forward pass per sequence, batch size 1."""

    def __init__(self, checkpoint: Checkpoint, device: str, dtype: torch.dtype) -> None:
        """Load the weights. Raises CheckpointError."""
        self.device = device
        self.kernels = PLAIN
        self._checkpoint = checkpoint
        self._model: PreTrainedModel
        self._heads: RewardHeads
        self._model, self._heads = load_model(checkpoint, device, dtype)
        use_patch_product(self._model.visual)

    def collate(self, candidates: Sequence[Candidate]) -> list[list[SequenceInputs]]:
        """Host tensors of every sequence of every candidate."""
        return [[self._inputs(sequence) for sequence in candidate.sequences] for candidate in candidates]

    def _inputs(self, sequence: TokenSequence) -> SequenceInputs:
        spec = self._checkpoint.image_spec
        image_id = self._checkpoint.config.image_token_id
        ids: list[int] = []
        types: list[int] = []
        images: list[Image] = []
        for segment in sequence.segments:
            is_image = isinstance(segment, Image)
            ids += [image_id] * segment.tokens if isinstance(segment, Image) else segment.ids
            types += [int(is_image)] * segment.tokens
            images += [segment] if isinstance(segment, Image) else []
        read = len(ids) - 1
        positions = torch.arange(sequence.tokens).expand(3, 1, -1)
        return SequenceInputs(
            input_ids=torch.tensor([ids + list(sequence.tail)]),
            mm_token_type_ids=torch.tensor([types + [0] * len(sequence.tail)]),
            pixel_values=torch.from_numpy(np.concatenate([preprocess.patches(i.pixels, spec) for i in images])),
            image_grid_thw=torch.tensor([preprocess.grid(i.pixels, spec) for i in images]),
            position_ids=positions if self._checkpoint.manifest.positions == "sequential" else None,
            read=read,
        )

    def score(self, batch: list[list[SequenceInputs]]) -> BatchResult:
        """One score per candidate; every token of every sequence is computed. Raises WorkerLost as ``Backend`` does."""
        with on_device(self.device):
            return self._score(batch)

    def sleep(self) -> None:
        """Implements ``SleepingBackend``."""
        put_away((self._model, self._heads), self.device)

    def wake(self) -> None:
        """Implements ``SleepingBackend``."""
        with on_device(self.device):
            bring_back((self._model, self._heads), self.device)

    @torch.inference_mode()
    def _score(self, batch: list[list[SequenceInputs]]) -> BatchResult:
        outcomes: list[Score | CandidateError] = []
        for sequences in batch:
            outputs = self._heads([self._hidden_state(inputs) for inputs in sequences])
            outcomes.append(to_score(self._checkpoint.manifest, {name: v.tolist() for name, v in outputs.items()}))
        every = [inputs for sequences in batch for inputs in sequences]
        return BatchResult(
            outcomes=outcomes,
            tokens_computed=sum(inputs.input_ids.numel() for inputs in every),
            images_encoded=sum(len(inputs.image_grid_thw) for inputs in every),
        )

    def _hidden_state(self, inputs: SequenceInputs) -> torch.Tensor:
        """The final hidden state **h** [H] of the reward token (Eq. 1), after the last norm."""
        last_hidden_state: torch.Tensor = self._model(
            input_ids=inputs.input_ids.to(self.device),
            mm_token_type_ids=inputs.mm_token_type_ids.to(self.device),
            pixel_values=inputs.pixel_values.to(self.device),
            image_grid_thw=inputs.image_grid_thw.to(self.device),
            position_ids=None if inputs.position_ids is None else inputs.position_ids.to(self.device),
            use_cache=False,
        ).last_hidden_state
        return last_hidden_state[0, inputs.read]
