"""vLLM's pooling runner as a scorer: the hidden state of each prompt's last token, and our heads on it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image as PILImage

from jrm_service.model.checkpoint import Checkpoint
from jrm_service.model.heads import RewardHeads, to_score
from jrm_service.model.weights import read_tensors
from jrm_service.scoring.backend import BatchResult
from jrm_service.scoring.types import Candidate, Image, TokenSequence

CACHE_GIB = 2  # of keys and values on a CPU
Prompts = list[list[dict[str, Any]]]

_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_CPU_KVCACHE_SPACE": str(CACHE_GIB),
    "VLLM_LOGGING_LEVEL": "ERROR",
}


class PoolingScorer:
    """A ``Backend`` but for its constructor: a prompt for each pass of each candidate, prefix caching on.

    It starts processes, so it belongs into a program that is guarded by ``if __name__ == "__main__"``.
    """

    def __init__(self, checkpoint: Checkpoint, device: str, dtype: str) -> None:
        self.device = device
        self._checkpoint = checkpoint
        os.environ.update({name: value for name, value in _ENVIRONMENT.items() if name not in os.environ})
        from vllm import LLM
        from vllm.config import PoolerConfig

        self._llm = LLM(
            model=str(checkpoint.path),
            runner="pooling",
            pooler_config=PoolerConfig(pooling_type="LAST", use_activation=False),
            dtype=dtype,
            max_model_len=min(8192, checkpoint.config.text_config.max_position_embeddings),
            enforce_eager=device == "cpu",
            enable_prefix_caching=True,
            limit_mm_per_prompt={"image": 2, "video": 0},
            mm_processor_kwargs={"do_resize": False},  # images come at the scorer's size
            disable_log_stats=True,
        )
        self._heads = RewardHeads(checkpoint.manifest, checkpoint.hidden_size)
        problems: list[str] = []
        with torch.no_grad():
            self._heads.load(dict(read_tensors(checkpoint.heads, torch.device("cpu"), torch.float32, problems)))
        assert not problems, problems

    def collate(self, candidates: Sequence[Candidate]) -> Prompts:
        """The prompts of every candidate."""
        return [[self._prompt(sequence) for sequence in candidate.sequences] for candidate in candidates]

    def _prompt(self, sequence: TokenSequence) -> dict[str, Any]:
        """Up to the reward token: what the chat template adds after it would be the last token."""
        ids: list[int] = []
        images = []
        for segment in sequence.segments:
            if isinstance(segment, Image):
                ids.append(self._checkpoint.config.image_token_id)  # vLLM repeats it as often as the image has tokens
                images.append(PILImage.fromarray(segment.pixels))
            else:
                ids += segment.ids
        return {"prompt_token_ids": ids, "multi_modal_data": {"image": images}}

    @torch.inference_mode()
    def score(self, batch: Prompts) -> BatchResult:
        """One score per candidate, in order."""
        prompts: Any = [prompt for of_candidate in batch for prompt in of_candidate]
        pooled = self._llm.encode(prompts, pooling_task="embed", use_tqdm=False)
        states = iter([torch.as_tensor(output.outputs.data).float().cpu() for output in pooled])
        outcomes = []
        for of_candidate in batch:
            outputs = self._heads([next(states) for _ in of_candidate])
            outcomes.append(to_score(self._checkpoint.manifest, {name: v.tolist() for name, v in outputs.items()}))
        return BatchResult(list(outcomes), tokens_computed=sum(len(output.prompt_token_ids) for output in pooled))

    def shutdown(self) -> None:
        """End its processes."""
        self._llm.llm_engine.engine_core.shutdown()
