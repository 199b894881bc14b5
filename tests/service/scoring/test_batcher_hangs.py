"""Devices that hang for ever: after a while without a live worker, the batcher says that nothing will be scored."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from jrm_service.errors import NoWorker
from jrm_service.scoring.backend import WorkerLost
from jrm_service.scoring.fakes import FakeBackend, FakeBatch
from jrm_service.scoring.types import Candidate, Score
from service.scoring.support import candidate, running, score, until
from support import virtual_time

HANG_TIMEOUT_S = 100.0
PATIENCE_S = 2 * HANG_TIMEOUT_S


class StuckBackend(FakeBackend):
    """Does not come back from its first step, ``collate``, until it is freed; then does what ``then`` does.

    In its first step, because the virtual clock does not wait for threads: whether one is quick changes nothing here.
    """

    def __init__(self, then: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.stuck = threading.Event()
        self._then = then

    def collate(self, candidates: Sequence[Candidate]) -> FakeBatch:
        self.stuck.wait()
        self._then()
        return super().collate(candidates)


class LostBackend(FakeBackend):
    """Its device is gone."""

    def collate(self, candidates: Sequence[Candidate]) -> FakeBatch:
        raise WorkerLost("gone")


def lose() -> None:
    raise WorkerLost("gone")


def run(main: Callable[[list[float], Callable[[], None]], Coroutine[Any, Any, None]]) -> None:
    """Run ``main(told, tell)``: ``tell`` is for a batcher, and adds the time to ``told``."""

    async def wrapped() -> None:
        told: list[float] = []
        await main(told, lambda: told.append(asyncio.get_running_loop().time()))

    virtual_time.run(wrapped())


def now() -> float:
    return asyncio.get_running_loop().time()


def options(tell: Callable[[], None]) -> dict[str, Any]:
    clock = asyncio.get_running_loop().time  # bound: threads read it too
    return {"hang_timeout_s": HANG_TIMEOUT_S, "on_all_lost": tell, "clock": clock, "grace_s": 0.0}


async def hang(batcher: Any) -> float:
    """Put a candidate that finds no worker to score it; returns when the last one was given up on."""
    [result] = await score(batcher, [candidate()], timeout_s=10_000.0)
    assert isinstance(result, NoWorker)
    assert batcher.alive == 0
    return now()


def test_a_device_that_hangs_for_ever_is_told_once() -> None:
    async def main(told: list[float], tell: Callable[[], None]) -> None:
        stuck = StuckBackend()
        async with running(stuck, **options(tell)) as batcher:
            gone_at = await hang(batcher)
            await asyncio.sleep(PATIENCE_S - 1)
            assert told == []
            await asyncio.sleep(10 * PATIENCE_S)
            assert told == [gone_at + PATIENCE_S]
            stuck.stuck.set()

    run(main)


def test_one_that_is_lost_and_one_that_hangs_are_no_worker() -> None:
    async def main(told: list[float], tell: Callable[[], None]) -> None:
        stuck = StuckBackend()
        async with running(LostBackend(), stuck, **options(tell)) as batcher:
            await score(batcher, [candidate(), candidate()], timeout_s=10_000.0)
            await until(lambda: batcher.alive == 0)
            gone_at = now()
            await asyncio.sleep(PATIENCE_S - 1)
            assert told == []
            await asyncio.sleep(10 * PATIENCE_S)
            assert told == [gone_at + PATIENCE_S]
            stuck.stuck.set()

    run(main)


def test_a_worker_that_comes_back_in_time_starts_the_wait_anew() -> None:
    async def main(told: list[float], tell: Callable[[], None]) -> None:
        stuck = StuckBackend()
        async with running(stuck, **options(tell)) as batcher:
            await hang(batcher)
            await asyncio.sleep(PATIENCE_S - 1)
            stuck.stuck.set()
            await until(lambda: batcher.alive == 1)
            await asyncio.sleep(PATIENCE_S)
            assert told == []
            stuck.stuck.clear()
            gone_at = await hang(batcher)
            await asyncio.sleep(10 * PATIENCE_S)
            assert told == [gone_at + PATIENCE_S]
            stuck.stuck.set()

    run(main)


def test_a_worker_that_comes_back_dead_is_told_at_once_and_not_again() -> None:
    async def main(told: list[float], tell: Callable[[], None]) -> None:
        stuck = StuckBackend(then=lose)
        async with running(stuck, **options(tell)) as batcher:
            gone_at = await hang(batcher)
            stuck.stuck.set()
            await until(lambda: bool(told))
            assert told == [gone_at]
            await asyncio.sleep(10 * PATIENCE_S)
            assert told == [gone_at]

    run(main)


def test_a_worker_beside_one_that_hangs_keeps_the_server_going() -> None:
    async def main(told: list[float], tell: Callable[[], None]) -> None:
        stuck = StuckBackend()
        async with running(stuck, FakeBackend(), **options(tell)) as batcher:
            results = await score(batcher, [candidate(), candidate()], timeout_s=10_000.0)
            await asyncio.sleep(10 * PATIENCE_S)
            assert [type(result) for result in results] == [Score, Score]
            assert told == []
            stuck.stuck.set()

    run(main)


def test_a_server_that_stops_is_not_told() -> None:
    async def main(told: list[float], tell: Callable[[], None]) -> None:
        stuck = StuckBackend()
        async with running(stuck, **options(tell)) as batcher:
            await hang(batcher)
        await asyncio.sleep(10 * PATIENCE_S)
        assert told == []
        stuck.stuck.set()

    run(main)
