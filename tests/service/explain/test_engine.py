"""An engine that does not start, dies, or is stopped while it starts: when it is tried again, what callers are told.

The clock is virtual, and the engines need no vLLM. An engine is built in a thread, which the clock does not wait for:
while one is being built, nothing here waits for a time.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from jrm_service.errors import ExplainUnavailable
from jrm_service.explain.engine import VLLMWriter
from jrm_service.explain.vllm_engine import EngineSettings
from jrm_service.explain.writer import Piece, Prompt
from jrm_service.metrics import Metrics
from support import virtual_time

SETTINGS = EngineSettings(Path("nowhere"), "cpu", "float32", 100, 1, 0.5, 0.1)
WARM_UP = Prompt([1], [], 1)


class MortalEngine:
    """Answers for ``seconds``, then is dead."""

    def __init__(self, now: Callable[[], float], seconds: float) -> None:
        self._now = now
        self._dies_at = now() + seconds
        self.unfinished = 0
        self.ended = threading.Event()

    @property
    def errored(self) -> bool:
        return self._now() >= self._dies_at

    async def answer(
        self, prompt: Prompt, *, max_tokens: int, schema: Mapping[str, Any] | None
    ) -> AsyncGenerator[Piece]:
        yield Piece("yes", "stop", 1)

    def shutdown(self) -> None:
        self.ended.set()


class Builder:
    """Builds engines that live as long as the list says, one after the other; None is one that does not start.

    ``starts`` has the times; ``exhausted`` is set when the list is at its end, and from then on nothing starts.
    """

    def __init__(self, *lives: float | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._lives = list(lives)
        self.starts: list[float] = []
        self.engines: list[MortalEngine] = []
        self.exhausted = asyncio.Event()

    def __call__(self, _settings: EngineSettings) -> MortalEngine:
        self.starts.append(self._loop.time())
        life = self._lives.pop(0) if self._lives else None
        if not self._lives:
            self._loop.call_soon_threadsafe(self.exhausted.set)
        if life is None:
            raise RuntimeError("no memory for the cache")
        self.engines.append(MortalEngine(self._loop.time, life))
        return self.engines[-1]

    @property
    def pauses(self) -> list[float]:
        """Seconds between two starts."""
        return [after - before for before, after in zip(self.starts, self.starts[1:], strict=False)]


@asynccontextmanager
async def running(build: Callable[[EngineSettings], Any]) -> AsyncGenerator[VLLMWriter]:
    writer = VLLMWriter(SETTINGS, Metrics(CollectorRegistry()), WARM_UP, build)
    writer.start()
    try:
        yield writer
    finally:
        await writer.stop()


def test_an_engine_that_does_not_start_is_tried_again_after_pauses_that_double() -> None:
    async def main() -> None:
        builder = Builder(*[None] * 9)
        async with running(builder) as writer:
            await builder.exhausted.wait()
            assert writer.state() == ("restarting", "the engine does not start")
            with pytest.raises(ExplainUnavailable):
                writer.check()
        assert builder.pauses == [1, 2, 4, 8, 16, 32, 60, 60]

    virtual_time.run(main())


def test_an_engine_that_dies_soon_is_started_again_after_pauses_that_double() -> None:
    async def main() -> None:
        builder = Builder(0, 0, 1, 10, None)
        async with running(builder):
            await builder.exhausted.wait()
        assert builder.pauses == [1, 2, 1 + 4, 10 + 8]
        assert [engine.ended.is_set() for engine in builder.engines] == [True] * 4

    virtual_time.run(main())


def test_an_engine_that_lived_for_a_while_begins_anew_at_the_first_pause() -> None:
    async def main() -> None:
        builder = Builder(None, None, None, 61, 0, None)
        async with running(builder):
            await builder.exhausted.wait()
        assert builder.pauses == [1, 2, 4, 61 + 1, 2]

    virtual_time.run(main())


def test_callers_are_told_when_the_engine_is_expected() -> None:
    async def main() -> None:
        builder = Builder(5, None)
        async with running(builder) as writer:
            with pytest.raises(ExplainUnavailable) as first:
                writer.check()
            await writer.ready()
            writer.check()
            await asyncio.sleep(5.5)
            with pytest.raises(ExplainUnavailable, match="the engine died") as dead:
                writer.check()
        assert first.value.retry_after == 1  # the keeper has not run yet
        assert dead.value.retry_after == 1

    virtual_time.run(main())


def test_stopping_while_an_engine_starts_does_not_wait_for_it_and_ends_it() -> None:
    async def main() -> None:
        building, go_on = threading.Event(), threading.Event()
        engine = MortalEngine(asyncio.get_running_loop().time, 0)

        def slow(_settings: EngineSettings) -> MortalEngine:
            building.set()
            go_on.wait()
            return engine

        async with running(slow):
            await asyncio.to_thread(building.wait)
        assert not go_on.is_set()  # we are here although it is still being built
        go_on.set()
        await asyncio.to_thread(engine.ended.wait)

    virtual_time.run(main())


def test_an_event_loop_ends_while_an_engine_starts() -> None:
    building, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    class Engine(MortalEngine):
        def shutdown(self) -> None:
            ended.set()

    def slow(_settings: EngineSettings) -> MortalEngine:
        building.set()
        go_on.wait()
        return Engine(lambda: 0.0, 0)

    async def main() -> None:
        async with running(slow):
            await asyncio.to_thread(building.wait)

    virtual_time.run(main())
    go_on.set()
    assert ended.wait(30)
