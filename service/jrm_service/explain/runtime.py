"""The explain half of a server: opened, started, drained and stopped. Knows vLLM only by ``engine``'s name for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from jrm_service.errors import Draining, NotReady
from jrm_service.metrics import Metrics
from jrm_service.scoring.types import ServedModel
from jrm_service.threads import in_daemon_thread

from .engine import VLLMWriter
from .service import ExplainLimits, ExplainService, Questions
from .vllm_engine import EngineSettings
from .writer import EngineState, Prompt

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Explainable:
    """What a checkpoint brings: its questions, the token id that stands for an image, dimension -> regions."""

    questions: Questions
    placeholder: int
    dimensions: dict[str, bool]
    warm_up: Prompt


class ExplainRuntime:
    """From settings to a running explain service.

    Args:
        model: what is served; called in a thread, because a fingerprint reads all weights.
        checkpoint: what is asked, and how.
        engine: how the language head is run.
        limits: what a request may ask for.
        threads: that decode and tokenize.
        metrics: where work is counted.
    """

    def __init__(
        self,
        model: Callable[[], ServedModel],
        checkpoint: Explainable,
        engine: EngineSettings,
        limits: ExplainLimits,
        *,
        threads: int,
        grace_s: float,
        metrics: Metrics,
    ) -> None:
        self._load_model = model
        self._checkpoint = checkpoint
        self._limits = limits
        self._threads = threads
        self._grace_s = grace_s
        self._metrics = metrics
        self._writer = VLLMWriter(engine, metrics, checkpoint.warm_up)
        self._service: ExplainService | None = None
        self._draining = False

    async def start(self) -> None:
        """Start the engine; returns when it has answered for the first time. It is kept alive until ``stop``."""
        self._writer.start()
        model = await in_daemon_thread(self._load_model)
        self._service = ExplainService(
            model,
            self._checkpoint.dimensions,
            self._checkpoint.questions,
            self._checkpoint.placeholder,
            self._writer,
            limits=self._limits,
            threads=self._threads,
            metrics=self._metrics,
        )
        await self._writer.ready()

    async def drain(self) -> None:
        """Refuse new work and finish what runs, for at most the grace period."""
        self._draining = True
        if self._service is not None:
            try:
                async with asyncio.timeout(self._grace_s):
                    await self._service.drain()
            except TimeoutError:
                logger.warning("gave up on unfinished critiques after %g s", self._grace_s)

    async def stop(self) -> None:
        """End the engine."""
        self._draining = True
        await self._writer.stop()
        if self._service is not None:
            self._service.close()

    def service(self) -> ExplainService:
        """The service. Raises Draining, or NotReady before there is one; the service says when its engine is not."""
        if self._draining:
            raise Draining("the server is shutting down; send the request to another replica", retry_after=5)
        if self._service is None:
            raise NotReady("not ready to explain: the checkpoint is being read", retry_after=5)
        return self._service

    def model(self) -> ServedModel:
        """What is served. Raises NotReady while the checkpoint is read."""
        if self._service is None:
            raise NotReady("not ready: the checkpoint is being read", retry_after=5)
        return self._service.model

    def state(self) -> tuple[EngineState, str]:
        """Whether critiques are written, and if not, why."""
        if self._draining:
            return "draining", "the server is shutting down"
        if self._service is None:
            return "loading", "the checkpoint is being read"
        return self._writer.state()
