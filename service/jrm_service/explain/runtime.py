"""The explain half of a server, from opening the checkpoint to shutdown."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from jrm_service.device.child import start_with_retries
from jrm_service.errors import Draining, ExplainSetupError, NotReady
from jrm_service.metrics import Metrics
from jrm_service.scoring.backend import StartFailed
from jrm_service.scoring.preparing import CheckpointPreparer
from jrm_service.scoring.types import ServedModel

from .engine import EngineWriter
from .service import ExplainLimits, ExplainService
from .worker import ExplainWorker
from .worker_messages import CheckpointOpened
from .writer import EngineState

logger = logging.getLogger(__name__)


class ExplainRuntime:
    """Turns a worker process into a running explain service.

    Args:
        worker: the process that writes critiques.
        limits: the limits of a request; ``context`` is lowered to the model's.
        threads: how many threads decode and tokenize.
        hang_timeout_s: seconds without progress on unfinished critiques after which the worker counts as hung.
        grace_s: seconds that running requests get on shutdown.
        metrics: counts the work.
        on_failed: called when the worker cannot be restarted.
    """

    def __init__(
        self,
        worker: ExplainWorker,
        limits: ExplainLimits,
        *,
        threads: int,
        hang_timeout_s: float,
        grace_s: float,
        metrics: Metrics,
        on_failed: Callable[[BaseException], None],
    ) -> None:
        self._worker = worker
        self._limits = limits
        self._threads = threads
        self._grace_s = grace_s
        self._metrics = metrics
        self._writer = EngineWriter(worker, metrics, hang_timeout_s=hang_timeout_s, on_failed=on_failed)
        self._opened: CheckpointOpened | None = None
        self._service: ExplainService | None = None
        self._failed = ""
        self._draining = False

    async def open(self) -> None:
        """Open the checkpoint, and check what can be checked before anything takes memory.

        Raises ExplainSetupError with the reasons why it cannot be explained here, and StartFailed.
        """
        try:
            self._opened = await start_with_retries(self._worker.open, "the explain worker")
        except StartFailed as error:
            self._failed = type(error).__name__
            if error.problems:
                raise ExplainSetupError(error.problems) from None
            raise

    async def start(self, fingerprint: str | None) -> None:
        """Start the engine for the opened checkpoint; returns when it has answered. It is kept running until ``stop``.

        ``fingerprint`` is the checkpoint's, if another worker has computed it. Raises StartFailed.
        """
        assert self._opened is not None
        opened, model = self._opened, self._opened.model
        if fingerprint is not None:
            model = replace(model, fingerprint=fingerprint)
        self._worker.expect(model.fingerprint)
        self._service = ExplainService(
            model,
            opened.dimensions,
            CheckpointPreparer(opened),
            opened.placeholder,
            self._writer,
            limits=replace(self._limits, context=opened.context),
            threads=self._threads,
            metrics=self._metrics,
        )
        await self._writer.start()

    async def drain(self) -> None:
        """Refuse new work and finish running requests, for at most the grace period."""
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
        """The service. Raises Draining, or NotReady before there is one; the service itself checks its engine."""
        if self._draining:
            raise Draining("the server is shutting down; send the request to another replica", retry_after=5)
        if self._service is None:
            raise NotReady("not ready to explain: the checkpoint is being read", retry_after=5)
        return self._service

    def model(self) -> ServedModel:
        """The model that is served. Raises NotReady while the checkpoint is read."""
        if self._service is None:
            raise NotReady("not ready: the checkpoint is being read", retry_after=5)
        return self._service.model

    def state(self) -> tuple[EngineState, str]:
        """Whether critiques are written, and if not, why."""
        if self._draining:
            return "draining", "the server is shutting down"
        if self._failed:
            return "failed", self._failed
        if self._service is None:
            return "loading", "the checkpoint is being read" if self._opened is None else "scoring is loaded first"
        return self._writer.state()
