"""vLLM in its worker process: the only module that imports vllm, and only when it is started."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jrm_service.explain.writer import EngineFailed, Piece, Prompt

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

logger = logging.getLogger(__name__)

_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",  # a checkpoint is a folder; nothing is ever fetched
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CONFIGURE_LOGGING": "0",  # its records go to our log
}


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How the stock half of a checkpoint is run.

    ``gpu_share`` is the share of the GPU's memory that vLLM may use, ``cache_gib`` the size of its cache on a CPU in
    GiB; ``context`` the longest sequence, answer included, ``images`` the most images in a prompt, and ``concurrency``
    how many answers are written at once.
    """

    path: Path
    device: str
    dtype: str
    context: int
    concurrency: int
    gpu_share: float
    cache_gib: float
    images: int = 2


class VLLMEngine:
    """A running vLLM."""

    def __init__(self, engine: AsyncLLM) -> None:
        self._engine = engine

    @property
    def errored(self) -> bool:
        """Whether it has died."""
        return bool(self._engine.errored)

    async def answer(
        self, prompt: Prompt, *, max_tokens: int, schema: Mapping[str, Any] | None
    ) -> AsyncGenerator[Piece]:
        """Answer greedily, as ``Writer.write`` says. Raises EngineFailed."""
        from PIL import Image
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        params = SamplingParams(
            temperature=0.0,
            max_tokens=max_tokens,
            skip_special_tokens=False,  # the region tags are special tokens
            output_kind=RequestOutputKind.DELTA,
            structured_outputs=None if schema is None else StructuredOutputsParams(json=dict(schema)),
        )
        inputs = {
            "prompt_token_ids": list(prompt.ids),
            "multi_modal_data": {"image": [Image.fromarray(pixels) for pixels in prompt.images]},
        }
        tokens = 0
        try:
            async with aclosing(self._engine.generate(inputs, params, uuid.uuid4().hex)) as outputs:
                async for output in outputs:
                    (answer,) = output.outputs
                    tokens += len(answer.token_ids)
                    reason = answer.finish_reason
                    if reason not in (None, "stop", "length"):
                        raise EngineFailed(f"the engine gave up: {reason}")
                    yield Piece(answer.text, reason, tokens)
        except EngineDeadError:
            raise EngineFailed("the engine died") from None
        except EngineGenerateError as error:
            logger.error("vLLM could not answer: %s", error)
            raise EngineFailed("the engine could not answer") from None


def only_gpu(device: str, environment: Mapping[str, str]) -> dict[str, str]:
    """What lets vLLM, which takes the first GPUs that it sees, see one alone; nothing where it is the first."""
    number = int(device.partition(":")[2] or 0)
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if number == 0:
        return {}
    return {"CUDA_VISIBLE_DEVICES": visible.split(",")[number].strip() if visible else str(number)}


def start_vllm(settings: EngineSettings) -> VLLMEngine:
    """Start vLLM, in most of a minute. Call it in the main thread: vLLM's processes are killed when that ends."""
    os.environ.update({name: value for name, value in _ENVIRONMENT.items() if name not in os.environ})
    # Overrides the environment: a spawned process runs the main module first, which makes it end with this one.
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    on_gpu = settings.device.startswith("cuda")
    if on_gpu:
        os.environ.update(only_gpu(settings.device, os.environ))
    else:
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = f"{settings.cache_gib:g}"
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    engine = AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            model=str(settings.path),
            dtype=settings.dtype,
            max_model_len=settings.context,
            max_num_seqs=settings.concurrency,
            gpu_memory_utilization=settings.gpu_share,
            enforce_eager=not on_gpu,
            limit_mm_per_prompt={"image": settings.images, "video": 0},
            # Images have the scorer's size already, and resizing is not idempotent: between equal limits 64x48 grows.
            mm_processor_kwargs={"do_resize": False},
            generation_config="vllm",  # greedy, whatever the folder's own config says
            disable_log_stats=True,
            enable_log_requests=False,  # prompts are the callers' own
            seed=0,
        )
    )
    return VLLMEngine(engine)
