"""The language head: an engine process of its own that is started, watched, and started again."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, suppress
from typing import Any, Protocol

from jrm_service.errors import ExplainUnavailable
from jrm_service.metrics import Metrics
from jrm_service.threads import in_daemon_thread

from .vllm_engine import EngineFailed, EngineSettings, start_vllm
from .writer import EngineState, Piece, Prompt

logger = logging.getLogger(__name__)

_WATCH_SECONDS = 0.25
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
_STABLE_SECONDS = 60.0  # an engine that lived so long begins anew at the first pause


class Engine(Protocol):
    """A running engine, as ``VLLMWriter`` knows it."""

    @property
    def errored(self) -> bool:
        """Whether it has died."""
        ...

    @property
    def unfinished(self) -> int:
        """Answers that it has not finished."""
        ...

    def answer(self, prompt: Prompt, *, max_tokens: int, schema: Mapping[str, Any] | None) -> AsyncGenerator[Piece]:
        """Answer greedily, as ``Writer.write`` says. Raises EngineFailed."""
        ...

    def shutdown(self) -> None:
        """End its processes. It takes its time: call it in a thread."""
        ...


class VLLMWriter:
    """Implements Writer. ``start`` returns at once; the engine is ready later, and comes back by itself if it dies.

    Args:
        settings: how the language head is run.
        metrics: where the engine's state is shown.
        warm_up: what a new engine answers first.
        build: starts an engine; called in a thread.
    """

    def __init__(
        self,
        settings: EngineSettings,
        metrics: Metrics,
        warm_up: Prompt,
        build: Callable[[EngineSettings], Engine] = start_vllm,
    ) -> None:
        self._settings = settings
        self._start_engine = build
        self._metrics = metrics
        self._warm_up = warm_up
        self._engine: Engine | None = None
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
        return 0 if self._engine is None else self._engine.unfinished

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
        self, engine: Engine, prompt: Prompt, max_tokens: int, schema: Mapping[str, Any] | None
    ) -> AsyncGenerator[Piece]:
        try:
            async with aclosing(engine.answer(prompt, max_tokens=max_tokens, schema=schema)) as pieces:
                async for piece in pieces:
                    yield piece
        except EngineFailed as failure:
            raise self._unavailable(str(failure)) from None

    def _unavailable(self, reason: str | None = None) -> ExplainUnavailable:
        wait = max(1.0, self._ready_again_at - _now())
        return ExplainUnavailable(f"no critiques now: {reason or self._reason}", retry_after=wait)

    async def _keep(self) -> None:
        pause, took = _FIRST_PAUSE_S, 60.0
        while True:
            started = _now()
            self._ready_again_at = started + took
            try:
                # A build that a stop overtakes goes on by itself: nobody can interrupt it, and nobody waits for it.
                self._engine = await in_daemon_thread(self._build, discard=_end)
                await self._write_first()
            except Exception as error:
                self._state, self._reason = "restarting", "the engine does not start"
                logger.error("the explain engine does not start: %s; trying again in %g s", _line(error), pause)
            else:
                took = _now() - started
                self._state, self._reason = "ready", ""
                self._answered.set()
                ready_at = _now()
                await self._until_dead(self._engine)
                if _now() - ready_at > _STABLE_SECONDS:
                    pause = _FIRST_PAUSE_S
                self._state, self._reason = "restarting", "the engine died and is being started again"
                self._metrics.explain_engine_restarts.inc()
                logger.error("the explain engine died; starting it again in %g s", pause)
            await self._shut_down()
            self._ready_again_at = _now() + pause + took
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _build(self) -> Engine:
        return self._start_engine(self._settings)

    async def _until_dead(self, engine: Engine) -> None:
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
            await asyncio.to_thread(_end, engine)
            del engine
            gc.collect()  # it shuts down once more when it is collected, which must not be after its own modules


def _line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:300]}" if text else type(error).__name__


def _end(engine: Engine) -> None:
    with suppress(Exception):  # whatever a dead engine makes of being ended
        engine.shutdown()


def _now() -> float:
    return asyncio.get_running_loop().time()
