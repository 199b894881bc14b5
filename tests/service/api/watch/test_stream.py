"""One reader's events, in whatever time it takes for them."""

import asyncio
from contextlib import ExitStack

import numpy as np
from prometheus_client import CollectorRegistry

from jrm_service.api.access_log import HANG_UP
from jrm_service.api.watch.recorder import Recorder
from jrm_service.api.watch.store import RecentGroups
from jrm_service.api.watch.stream import EventStream, events, resumed
from jrm_service.api.watch.window import Numbers, Window
from jrm_service.metrics import Metrics
from support.cases import each
from support.watching import parsed

HELLO = {"keep_recent": 3}


class Reader:
    """Takes an event whenever it is asked to."""

    def __init__(self, *, groups: int = 0, after: int = 0, **options) -> None:
        self.recorder = Recorder(RecentGroups(3, 1000), Window(), Metrics(CollectorRegistry()), max_waiting_bytes=0)
        self.add(groups)
        self.changed = asyncio.Event()
        self.stream = events(self.recorder, self.changed, HELLO, after=after, run="run", **options)

    def add(self, count: int = 1) -> None:
        for _ in range(count):
            self.recorder.store.add("{}", [])

    async def next(self):
        return parsed((await anext(self.stream)).rstrip("\n"))

    async def names(self, count: int) -> list[str]:
        return [(event.id or event.name) for event in [await self.next() for _ in range(count)]]


def test_first_hello_then_what_is_kept_then_how_it_moves():
    async def run() -> None:
        reader = Reader(groups=5)
        assert await reader.names(5) == ["hello", "run-3", "run-4", "run-5", "window"]

    asyncio.run(run())


def test_a_reader_that_is_slow_misses_groups_and_is_told_how_many():
    async def run() -> None:
        reader = Reader(groups=1)
        assert await reader.names(3) == ["hello", "run-1", "window"]
        reader.add(10)
        missed = await reader.next()
        assert (missed.name, missed.data) == ("missed", {"groups": 7})
        assert await reader.names(3) == ["run-9", "run-10", "run-11"]

    asyncio.run(run())


def test_a_reader_that_comes_back_gets_what_it_has_not_had():
    async def run() -> None:
        reader = Reader(groups=5, after=4)
        assert await reader.names(3) == ["hello", "run-5", "window"]
        assert await Reader(groups=5, after=1).names(3) == ["hello", "missed", "run-3"]

    asyncio.run(run())


def test_a_reader_that_is_always_behind_sees_how_it_moves_all_the_same():
    async def run() -> None:
        reader = Reader(groups=2, window_s=0.0)
        seen = await reader.names(4)
        for _ in range(6):
            reader.add(2)
            reader.recorder.window.add(Numbers("judge", np.zeros(2), {}, 0))
            seen += await reader.names(2)
        assert seen.count("window") >= 3
        assert sum(name.startswith("run-") for name in seen) >= 6

    asyncio.run(run())


def test_a_reader_that_may_have_no_more_gets_no_more():
    async def run() -> None:
        allowed = [True]
        reader = Reader(groups=3, goes_on=lambda: allowed[0])
        assert await reader.names(2) == ["hello", "run-1"]
        allowed[0] = False
        assert [event async for event in reader.stream] == []

    asyncio.run(run())


def test_what_is_new_wakes_the_reader():
    async def run() -> None:
        reader = Reader()
        assert await reader.names(2) == ["hello", "window"]
        waiting = asyncio.create_task(reader.next())
        await asyncio.sleep(0)
        assert not waiting.done()
        reader.add()
        reader.changed.set()
        assert (await waiting).id == "run-1"

    asyncio.run(run())


def test_after_silence_there_is_a_comment():
    async def run() -> None:
        reader = Reader(keepalive_s=0.01)
        assert await reader.names(2) == ["hello", "window"]
        assert (await reader.next()).data == "keepalive"

    asyncio.run(run())


def test_it_ends_when_the_recorder_closes():
    async def run() -> None:
        reader = Reader()
        await reader.names(2)
        reader.recorder.close()
        reader.changed.set()
        assert [event async for event in reader.stream] == []

    asyncio.run(run())


@each(
    ("sent", "after"),
    [
        ("run-3", 3),
        ("run-5", 5),
        ("run-6", 0),  # this process has not counted so far
        ("other-3", 0),
        ("", 0),
        ("3", 0),
        ("run--1", 0),
        ("run-3\n", 0),
        ("run-" + "9" * 500, 0),
    ],
)
def test_an_id_of_another_run_begins_at_the_beginning(sent, after):
    assert resumed(sent, "run", 5) == after


def test_a_reader_that_takes_nothing_is_let_go_of():
    async def run() -> None:
        reader, held, left = Reader(), ExitStack(), []
        held.callback(lambda: left.append("the stream"))

        async def send(message) -> None:
            await asyncio.Event().wait()

        scope = {"type": "http", "asgi": {"spec_version": "2.3"}, "method": "GET", "headers": []}
        scope["state"] = {HANG_UP: lambda: left.append("the connection")}
        await EventStream(reader.stream, held, stalled_s=0.01)(scope, asyncio.Event().wait, send)
        assert left == ["the connection", "the stream"]

    asyncio.run(run())
