"""The baseline that most people would write: transformers' own forward on right-padded batches of sequences."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from jrm_service.model.checkpoint import Checkpoint
from jrm_service.model.heads import to_score
from jrm_service.model.scorer import PlainScorer, SequenceInputs
from jrm_service.scoring.backend import BatchResult


class PaddedScorer(PlainScorer):
    """The plain scorer, but for running ``batch_size`` sequences at a time.

    Sequences are sorted by length first, so that padding is as little as it can be. Every image of every sequence goes
    through the vision tower, all images of a batch in one call.
    """

    def __init__(self, checkpoint: Checkpoint, device: str, dtype: torch.dtype, batch_size: int) -> None:
        super().__init__(checkpoint, device, dtype)
        self.batch_size = batch_size

    @torch.inference_mode()
    def _score(self, batch: list[list[SequenceInputs]]) -> BatchResult:
        places = [(c, p) for c, sequences in enumerate(batch) for p in range(len(sequences))]
        places.sort(key=lambda place: batch[place[0]][place[1]].input_ids.numel())
        hidden: dict[tuple[int, int], torch.Tensor] = {}
        tokens = 0
        for start in range(0, len(places), self.batch_size):
            chosen = places[start : start + self.batch_size]
            states, computed = self._hidden_states([batch[c][p] for c, p in chosen])
            hidden |= dict(zip(chosen, states, strict=True))
            tokens += computed
        outcomes = []
        for c, sequences in enumerate(batch):
            outputs = self._heads([hidden[c, p] for p in range(len(sequences))])
            outcomes.append(to_score(self._checkpoint.manifest, {name: v.tolist() for name, v in outputs.items()}))
        return BatchResult(list(outcomes), tokens_computed=tokens)

    def _hidden_states(self, sequences: Sequence[SequenceInputs]) -> tuple[torch.Tensor, int]:
        """**h** [B, H] of the reward tokens, and the tokens that were run, padding included."""

        def padded(rows: list[torch.Tensor]) -> torch.Tensor:
            return pad_sequence(rows, batch_first=True).to(self.device)

        ids = padded([s.input_ids[0] for s in sequences])
        states: torch.Tensor = self._model(
            input_ids=ids,
            attention_mask=padded([torch.ones_like(s.input_ids[0]) for s in sequences]),
            mm_token_type_ids=padded([s.mm_token_type_ids[0] for s in sequences]),
            pixel_values=torch.cat([s.pixel_values for s in sequences]).to(self.device),
            image_grid_thw=torch.cat([s.image_grid_thw for s in sequences]).to(self.device),
            use_cache=False,
        ).last_hidden_state
        rows = torch.arange(len(sequences), device=self.device)
        return states[rows, torch.tensor([s.read for s in sequences], device=self.device)], ids.numel()
