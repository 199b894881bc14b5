"""Keeps the engine of the language head running: starts it, watches it, and restarts it if it dies or hangs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any, Protocol

from jrm_service.errors import ExplainUnavailable
from jrm_service.metrics import Metrics
from jrm_service.scoring.backend import StartFailed
from jrm_service.scoring.batcher import STABLE_S, restart_pauses

from .writer import EngineFailed, EngineState, Piece, Prompt

logger = logging.getLogger(__name__)


class Engine(Protocol):
    """What ``EngineWriter`` needs of an engine that can be restarted, such as a process."""

    async def start(self) -> None:
        """Start it, for the first time or again; returns when it has answered. Raises StartFailed."""
        ...

    @property
    def lost(self) -> asyncio.Future[None]:
        """Done once the engine that was started last is gone."""
        ...

    @property
    def unfinished(self) -> int:
        """How many answers it has not finished."""
        ...

    @property
    def silent_since(self) -> float | None:
        """When it was last heard of, in the event loop's time; None while it owes no answer."""
        ...

    def answer(self, prompt: Prompt, *, max_tokens: int, schema: Mapping[str, Any] | None) -> AsyncGenerator[Piece]:
        """Answer greedily, as ``Writer.write`` says. Raises EngineFailed."""
        ...

    async def end(self) -> None:
        """End it, whatever it is doing."""
        ...


class EngineWriter:
    """Implements Writer with an engine that is restarted if it dies or hangs. Use from one event loop.

    Args:
        engine: answers the prompts.
        metrics: shows the engine's state.
        hang_timeout_s: seconds without progress on any answer after which the engine counts as hung.
        on_failed: called when MOST_FAILED_STARTS restarts in a row have failed.
    """

    def __init__(
        self,
        engine: Engine,
        metrics: Metrics,
        *,
        hang_timeout_s: float,
        on_failed: Callable[[BaseException], None] = lambda _error: None,
    ) -> None:
        self._engine = engine
        self._metrics = metrics
        self._hang_timeout_s = hang_timeout_s
        self._on_failed = on_failed
        self._state: EngineState = "loading"
        self._reason = "the engine is being started"
        self._took = 60.0  # seconds, from a start to the first answer
        self._ready_again_at = 0.0
        self._keeper: asyncio.Task[None] | None = None
        metrics.explain_running.set_function(lambda: engine.unfinished)
        metrics.explain_engine_up.set_function(lambda: float(self._state == "ready"))

    def state(self) -> tuple[EngineState, str]:
        """Whether it answers, and if not, why."""
        return self._state, self._reason

    async def start(self) -> None:
        """Start the engine, and keep it running until ``stop``. Raises StartFailed after repeated failures."""
        await self._bring_up(0)
        self._keeper = asyncio.create_task(self._keep(), name="jrm-explain-engine")

    async def stop(self) -> None:
        """End the engine."""
        self._state, self._reason = "draining", "the server is shutting down"
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        await self._engine.end()

    def check(self) -> None:
        """Raises ExplainUnavailable while there is no engine that answers; ``retry_after`` is when it is expected."""
        if self._state != "ready":
            raise self._unavailable(self._reason)

    async def write(
        self, prompt: Prompt, *, max_tokens: int, schema: Mapping[str, Any] | None = None
    ) -> AsyncGenerator[Piece]:
        """Answer greedily, as ``Writer.write`` says."""
        self.check()
        try:
            async with aclosing(self._engine.answer(prompt, max_tokens=max_tokens, schema=schema)) as pieces:
                async for piece in pieces:
                    yield piece
        except EngineFailed as failure:
            raise self._unavailable(str(failure)) from None

    def _unavailable(self, reason: str) -> ExplainUnavailable:
        wait = self._ready_again_at - _now()
        if self._state == "ready":  # one answer failed, or the engine has just died and ``_keep`` has not noticed yet
            wait = self._took if self._engine.lost.done() else 0.0
        return ExplainUnavailable(f"no critiques now: {reason}", retry_after=max(1.0, wait))

    async def _keep(self) -> None:
        """Restart the engine whenever it is gone, by the rules for scoring workers: see ``Batcher``."""
        quick_ends = 0  # short runs in a row
        while True:
            began = _now()
            ending = await self._until_gone()
            self._state, self._reason = "restarting", f"the engine {ending} and is being started again"
            self._ready_again_at = _now() + self._took
            self._metrics.explain_engine_restarts.inc()
            logger.error("the explain engine %s", ending)
            await self._engine.end()
            quick_ends = 0 if _now() - began > STABLE_S else quick_ends + 1
            try:
                await self._bring_up(quick_ends - 1)
            except StartFailed as error:
                self._on_failed(error)
                return
            logger.warning("the explain engine is back")

    async def _bring_up(self, quick_ends: int) -> None:
        for pause in restart_pauses(quick_ends):
            self._ready_again_at = _now() + pause + self._took
            await asyncio.sleep(pause)
            began = _now()
            try:
                await self._engine.start()
            except StartFailed as error:
                self._state, self._reason = "restarting", "the engine does not start"
                logger.error("the explain engine does not start: %s", error)
                failure = error
            else:
                self._took = _now() - began
                self._state, self._reason = "ready", ""
                return
        self._state = "failed"
        raise failure

    async def _until_gone(self) -> str:
        """Wait until the engine is gone, and return how: it ``died`` or ``hung``."""
        while True:
            since = self._engine.silent_since
            left = self._hang_timeout_s - (0.0 if since is None else _now() - since)
            if left <= 0:
                return "hung"
            await asyncio.wait([self._engine.lost], timeout=left)
            if self._engine.lost.done():
                return "died"


def _now() -> float:
    return asyncio.get_running_loop().time()
