"""An engine that does not start, dies, hangs, or is stopped while it starts: when it is tried again, and what is told.

The clock is virtual, and the engines are no processes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from benchmarks import virtual_time
from jrm_service.errors import ExplainUnavailable
from jrm_service.explain.engine import EngineWriter
from jrm_service.explain.writer import EngineFailed, Piece, Prompt
from jrm_service.metrics import Metrics
from jrm_service.scoring.backend import StartFailed

PROMPT = Prompt([1], [], 1)
START_S, HANG_TIMEOUT_S = 5.0, 30.0
Failures = asyncio.Queue[BaseException]


class MortalEngine:
    """Takes START_S to start, then lives for as long as the list says, life after life; None is a start that fails.

    ``starts`` has the times; once the list is at its end, nothing starts.
    """

    def __init__(self, *lives: float | None) -> None:
        self._lives = list(lives)
        self.starts: list[float] = []
        self.ends = 0
        self.unfinished = 0
        self.silent_since: float | None = None
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self.starts.append(loop.time())
        await asyncio.sleep(START_S)
        life = self._lives.pop(0) if self._lives else None
        if life is None:
            raise StartFailed("no memory for the cache")
        self.lost = loop.create_future()
        loop.call_later(life, self.lost.set_result, None)

    async def answer(
        self, prompt: Prompt, *, max_tokens: int, schema: Mapping[str, Any] | None
    ) -> AsyncGenerator[Piece]:
        yield Piece("yes")
        await self.lost
        raise EngineFailed("the engine died")

    async def end(self) -> None:
        self.ends += 1
        self.unfinished, self.silent_since = 0, None

    @property
    def pauses(self) -> list[float]:
        """Seconds between a start that came to its end, well or not, and the next."""
        return [after - before - START_S for before, after in zip(self.starts, self.starts[1:], strict=False)]


@asynccontextmanager
async def running(
    *lives: float | None,
) -> AsyncGenerator[tuple[EngineWriter, MortalEngine, asyncio.Queue[BaseException]]]:
    engine, failures = MortalEngine(*lives), asyncio.Queue[BaseException]()
    metrics = Metrics(CollectorRegistry())
    writer = EngineWriter(engine, metrics, hang_timeout_s=HANG_TIMEOUT_S, on_failed=failures.put_nowait)
    try:
        yield writer, engine, failures
    finally:
        await writer.stop()


def test_an_engine_that_never_starts_is_tried_five_times_with_pauses_that_double() -> None:
    async def main() -> None:
        async with running() as (writer, engine, failures):
            with pytest.raises(StartFailed, match="no memory for the cache"):
                await writer.start()
            assert engine.pauses == [1, 2, 4, 8]
            assert writer.state() == ("failed", "the engine does not start")
            with pytest.raises(ExplainUnavailable):
                writer.check()
            assert failures.empty()  # it was told by the exception

    virtual_time.run(main())


def test_an_engine_that_dies_again_and_again_is_started_after_pauses_that_double() -> None:
    async def main() -> None:
        async with running(0, 1, 10, 0, 20) as (writer, engine, failures):
            await writer.start()
            assert isinstance(await failures.get(), StartFailed)
            assert engine.pauses[:5] == [0 + 0, 1 + 1, 10 + 2, 0 + 4, 20 + 8]
            assert engine.pauses[5:] == [16, 30, 30, 30]  # to five starts in a row that fail
            assert writer.state()[0] == "failed"
            assert engine.ends == 5

    virtual_time.run(main())


def test_an_engine_that_lived_for_a_while_is_started_again_at_once() -> None:
    async def main() -> None:
        async with running(0, 0, 0, 61, 0, 0) as (writer, engine, failures):
            await writer.start()
            await failures.get()
            assert engine.pauses[:6] == [0, 1, 2, 61 + 0, 0, 1]

    virtual_time.run(main())


def test_callers_are_told_when_the_engine_is_expected() -> None:
    async def main() -> None:
        async with running(10, 100) as (writer, _, _):
            with pytest.raises(ExplainUnavailable, match="is being started"):
                writer.check()
            await writer.start()
            writer.check()
            async with aclosing(writer.write(PROMPT, max_tokens=1)) as pieces:
                assert (await anext(pieces)).text == "yes"
                with pytest.raises(ExplainUnavailable, match="the engine died") as died:
                    await anext(pieces)
            await asyncio.sleep(1)
            with pytest.raises(ExplainUnavailable, match="the engine died and is being started again") as refused:
                writer.check()
            assert died.value.retry_after == START_S
            assert refused.value.retry_after == START_S - 1
            await asyncio.sleep(START_S)
            writer.check()

    virtual_time.run(main())


def test_an_engine_that_owes_an_answer_and_says_nothing_is_ended_and_started_again() -> None:
    async def main() -> None:
        async with running(1000, 1000) as (writer, engine, _):
            await writer.start()
            await asyncio.sleep(500)  # of silence, while nothing is asked of it
            assert (len(engine.starts), engine.ends) == (1, 0)
            for _ in range(5):
                engine.silent_since = asyncio.get_running_loop().time()
                await asyncio.sleep(HANG_TIMEOUT_S - 1)
            assert (len(engine.starts), engine.ends) == (1, 0)
            await asyncio.sleep(2)
            with pytest.raises(ExplainUnavailable, match="the engine hung"):
                writer.check()
            assert engine.ends == 1
            await asyncio.sleep(START_S)
            writer.check()

    virtual_time.run(main())


def test_stopping_while_an_engine_is_started_again_ends_it() -> None:
    async def main() -> None:
        async with running(1, 100) as (writer, engine, failures):
            await writer.start()
            await engine.lost
            await asyncio.sleep(1)
            assert len(engine.starts) == 2
        assert writer.state() == ("draining", "the server is shutting down")
        assert engine.ends == 2
        assert failures.empty()

    virtual_time.run(main())
