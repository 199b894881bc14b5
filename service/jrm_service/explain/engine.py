"""The language head in vLLM: an engine process of its own that is started, watched, and started again.

The only module that imports vllm, and only when an engine is started.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import time
import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jrm_service.errors import ExplainUnavailable
from jrm_service.metrics import Metrics

from .writer import EngineState, Piece, Prompt

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

logger = logging.getLogger(__name__)

_WATCH_SECONDS = 0.25
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
_STABLE_SECONDS = 60.0  # an engine that lived so long begins anew at the first pause
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",  # a checkpoint is a folder; nothing is ever fetched
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # this process has threads, and maybe a GPU, that a fork would break
    "VLLM_CONFIGURE_LOGGING": "0",  # its records go where ours go
}


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How the stock half of a checkpoint is run.

    ``gpu_share`` is the part of the GPU's memory that vLLM may use, ``cache_gib`` the size of its cache on a CPU in
    GiB; ``context`` the longest sequence, answer included, and ``concurrency`` how many are written at once.
    """

    path: Path
    device: str
    dtype: str
    context: int
    concurrency: int
    gpu_share: float
    cache_gib: float


class VLLMWriter:
    """Implements Writer. ``start`` returns at once; the engine is ready later, and comes back by itself if it dies."""

    def __init__(self, settings: EngineSettings, metrics: Metrics, warm_up: Prompt) -> None:
        self._settings = settings
        self._metrics = metrics
        self._warm_up = warm_up
        self._engine: AsyncLLM | None = None
        self._state: EngineState = "loading"
        self._reason = "the engine is being started"
        self._ready_again_at = 0.0
        self._answered = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        metrics.explain_running.set_function(lambda: self.running)
        metrics.explain_engine_up.set_function(lambda: float(self._state == "ready"))

    @property
    def running(self) -> int:
        """Answers that the engine has not finished."""
        return 0 if self._engine is None else int(self._engine.get_num_unfinished_requests())

    def state(self) -> tuple[EngineState, str]:
        """Whether it answers, and if not, why."""
        return self._state, self._reason

    def start(self) -> None:
        """Start the engine, and keep one running until ``stop``."""
        self._keeper = asyncio.create_task(self._keep(), name="jrm-explain-engine")

    async def ready(self) -> None:
        """Wait until the engine has answered for the first time."""
        await self._answered.wait()

    async def stop(self) -> None:
        """End the engine process."""
        self._state, self._reason = "draining", "the server is shutting down"
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        await self._shut_down()

    def check(self) -> None:
        """Raises ExplainUnavailable while there is no engine that answers; ``retry_after`` is when it is expected."""
        if self._engine is None or self._state != "ready":
            raise self._unavailable()

    async def write(
        self, prompt: Prompt, *, max_tokens: int, schema: Mapping[str, Any] | None = None
    ) -> AsyncGenerator[Piece]:
        """Answer greedily, as Writer says."""
        self.check()
        assert self._engine is not None
        async with aclosing(self._answer(self._engine, prompt, max_tokens, schema)) as pieces:
            async for piece in pieces:
                yield piece

    async def _answer(
        self, engine: AsyncLLM, prompt: Prompt, max_tokens: int, schema: Mapping[str, Any] | None
    ) -> AsyncGenerator[Piece]:
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
            async with aclosing(engine.generate(inputs, params, uuid.uuid4().hex)) as outputs:
                async for output in outputs:
                    (answer,) = output.outputs
                    tokens += len(answer.token_ids)
                    reason = answer.finish_reason
                    if reason not in (None, "stop", "length"):
                        raise self._unavailable(f"the engine gave up: {reason}")
                    yield Piece(answer.text, reason, tokens)
        except EngineDeadError:
            raise self._unavailable("the engine died") from None
        except EngineGenerateError as error:
            logger.error("vLLM could not answer: %s", error)
            raise self._unavailable("the engine could not answer") from None

    def _unavailable(self, reason: str | None = None) -> ExplainUnavailable:
        wait = max(1.0, self._ready_again_at - time.monotonic())
        return ExplainUnavailable(f"no critiques now: {reason or self._reason}", retry_after=wait)

    async def _keep(self) -> None:
        pause, took = _FIRST_PAUSE_S, 60.0
        while True:
            started = time.monotonic()
            self._ready_again_at = started + took
            try:
                self._engine = await asyncio.to_thread(self._build)
                await self._write_first()
            except Exception as error:
                self._state, self._reason = "restarting", "the engine does not start"
                logger.error("the explain engine does not start: %s; trying again in %g s", _line(error), pause)
            else:
                took = time.monotonic() - started
                self._state, self._reason = "ready", ""
                self._answered.set()
                ready_at = time.monotonic()
                await self._until_dead(self._engine)
                if time.monotonic() - ready_at > _STABLE_SECONDS:
                    pause = _FIRST_PAUSE_S
                self._state, self._reason = "restarting", "the engine died and is being started again"
                self._metrics.explain_engine_restarts.inc()
                logger.error("the explain engine died; starting it again in %g s", pause)
            await self._shut_down()
            self._ready_again_at = time.monotonic() + pause + took
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    async def _until_dead(self, engine: AsyncLLM) -> None:
        while not engine.errored:  # noqa: ASYNC110 - vLLM tells nobody
            await asyncio.sleep(_WATCH_SECONDS)

    async def _write_first(self) -> None:
        """One answer: kernels are warm, and the first caller does not find out what does not work."""
        assert self._engine is not None
        async with aclosing(self._answer(self._engine, self._warm_up, 2, None)) as pieces:
            async for _ in pieces:
                pass

    async def _shut_down(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            with suppress(Exception):  # whatever a dead engine makes of being ended
                await asyncio.to_thread(engine.shutdown)
            del engine
            gc.collect()  # it shuts down once more when it is collected, which must not be after its own modules

    def _build(self) -> AsyncLLM:
        """In a thread: importing vllm takes seconds, starting its processes most of a minute."""
        settings = self._settings
        os.environ.update({name: value for name, value in _ENVIRONMENT.items() if name not in os.environ})
        on_gpu = settings.device.startswith("cuda")
        if not on_gpu:
            os.environ["VLLM_CPU_KVCACHE_SPACE"] = f"{settings.cache_gib:g}"
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        return AsyncLLM.from_engine_args(
            AsyncEngineArgs(
                model=str(settings.path),
                dtype=settings.dtype,
                max_model_len=settings.context,
                max_num_seqs=settings.concurrency,
                gpu_memory_utilization=settings.gpu_share,
                enforce_eager=not on_gpu,
                limit_mm_per_prompt={"image": 2, "video": 0},
                # Images come at the scorer's size, and resizing is not idempotent: between equal limits 64x48 grows.
                mm_processor_kwargs={"do_resize": False},
                generation_config="vllm",  # greedy, whatever the folder's says
                disable_log_stats=True,
                enable_log_requests=False,  # prompts are the callers' own
                seed=0,
            )
        )


def _line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:300]}" if text else type(error).__name__
