"""Real worker processes: what they answer, what becomes of candidates when they die, and what they leave behind.

Those whose scores or precision matter load the bundled checkpoint, the others the fake model, which takes no time.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage
from prometheus_client import CollectorRegistry

from jrm_service.device.channel import Channel, Load, Loaded
from jrm_service.device.process import ProcessWorker, _each_image_once, load_all
from jrm_service.errors import CheckpointError, DeviceLost, DeviceMemoryTaken, InternalError
from jrm_service.metrics import Metrics
from jrm_service.model.checkpoint_source import open_source
from jrm_service.model.main import _load as load_checkpoint
from jrm_service.model.scorer import PlainScorer
from jrm_service.scoring.backend import Preparer, StartFailed, WorkerLost
from jrm_service.scoring.batcher import Batcher
from jrm_service.scoring.fakes import FakePreparer
from jrm_service.scoring.preparing import CheckpointPreparer
from jrm_service.scoring.request import Request
from jrm_service.scoring.types import Candidate, Image, Score, Text, TokenSequence

START_S = 240.0
TESTS = str(Path(__file__).parents[2])
FAULTY = "support.faulty_worker"


def load(number: int = 0, workers: int = 1, **changes) -> Load:
    settings = {
        "checkpoint": None,
        "devices": ["cpu"] * workers,
        "dtype": "auto",
        "engine": "trie",
        "self_test": True,
        "allow_pipeline_drift": False,
        "hashed": number == 0,
        "measured": True,
        "spared": 0.0,
    }
    return Load(number=number, **(settings | changes))


@pytest.fixture(autouse=True)
def faulty_workers_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([TESTS, os.environ.get("PYTHONPATH", "")]))


def run(main: Awaitable[None]) -> None:
    asyncio.run(asyncio.wait_for(main, 280))


@asynccontextmanager
async def worker(module: str = "jrm_service.model.main", **changes) -> AsyncIterator[tuple[ProcessWorker, Loaded]]:
    started = ProcessWorker(load(**changes), start_timeout_s=START_S, module=module)
    try:
        yield started, await started.load()
    finally:
        await started.end()


def candidates(preparer: Preparer, instructions: list[str]) -> list[Candidate]:
    source = preparer.image(PILImage.new("RGB", (64, 64), "red"))
    edited = [
        preparer.image(PILImage.fromarray(np.full((64, 64, 3), number, np.uint8)))
        for number in range(len(instructions))
    ]
    return [
        preparer.candidate([source], image, instruction)
        for image, instruction in zip(edited, instructions, strict=True)
    ]


def test_what_a_message_names_twice_travels_once() -> None:
    def image(key: bytes) -> Image:
        return Image(key, np.zeros((32, 32, 3), np.uint8), 1)

    def candidate(*keys: bytes) -> Candidate:
        *sources, edited = map(image, keys)
        return Candidate(tuple(sources), edited, "x", (TokenSequence((*sources, Text((1,)), edited), ()),))

    sent = _each_image_once([candidate(b"a", b"b", b"a", b"e"), candidate(b"e"), candidate(b"b", b"e")])
    objects = {
        id(image) for one in sent for image in (*one.images, *one.sequences[0].segments) if isinstance(image, Image)
    }
    assert len(objects) == 3
    assert [[image.key for image in one.images] for one in sent] == [[b"a", b"b", b"a", b"e"], [b"e"], [b"b", b"e"]]
    assert [[s.key for s in one.sequences[0].segments if isinstance(s, Image)] for one in sent] == [
        [image.key for image in one.images] for one in sent
    ]


def close(score: Score | Exception, other: Score | Exception) -> bool:
    assert isinstance(score, Score), score
    assert isinstance(other, Score)
    return abs(score.reward - other.reward) < 1e-4


def test_a_worker_scores_as_the_plain_scorer_of_this_process() -> None:
    async def main() -> None:
        here = open_source(None, ["cpu"], "float32", "plain")
        model, [plain] = here.load()
        assert isinstance(plain, PlainScorer)
        async with worker() as (process, loaded):
            assert loaded.model.fingerprint == model.fingerprint
            there = CheckpointPreparer(loaded)
            texts = ["make it blue", "<|im_end|>\n<|Reward|> \ue000 e\u0301 \u00e9 \U0001f984 \u4e2d", "remove it  "]
            ours, theirs = candidates(here.preparer, texts), candidates(there, texts)
            for candidate, other in zip(ours, theirs, strict=True):
                assert [s.tail for s in candidate.sequences] == [s.tail for s in other.sequences]
                for sequence, same in zip(candidate.sequences, other.sequences, strict=True):
                    assert [getattr(s, "ids", None) for s in sequence.segments] == [
                        getattr(s, "ids", None) for s in same.segments
                    ]
            expected = plain.score(plain.collate(ours)).outcomes
            first, second = process.score(theirs), process.score(theirs[1:])
            answers = await asyncio.gather(first, second)
            assert all(map(close, answers[0].scored.outcomes, expected))
            assert all(map(close, answers[1].scored.outcomes, expected[1:]))

    run(main())


def test_what_keeps_a_checkpoint_from_loading_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        workers = [
            ProcessWorker(load(0, 2, checkpoint="/broken"), start_timeout_s=START_S, module=FAULTY),
            ProcessWorker(load(1, 2), start_timeout_s=START_S, module=FAULTY),
        ]
        with pytest.raises(CheckpointError, match=r"/broken: refused for a test"):
            await load_all(workers)
        assert all(process.lost.done() for process in workers)

    with caplog.at_level(logging.CRITICAL):
        run(main())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"fingerprint": "0" * 32}, "the checkpoint has become another"),
        ({"devices": ["cuda:99"]}, r"device 'cuda:99': torch sees \d+ GPUs here"),
    ],
)
def test_what_a_worker_refuses(changes: dict[str, Any], told: str) -> None:
    """What the process does, in this one."""
    ours, theirs = map(Channel, socket.socketpair())
    with closing(ours), closing(theirs), pytest.raises(CheckpointError, match=told):
        load_checkpoint(load(**changes), theirs)


def test_workers_that_would_score_in_different_precision_are_refused() -> None:
    async def main() -> None:
        loads = [load(0, 2, dtype="float32", measured=False), load(1, 2, dtype="bfloat16", measured=False)]
        workers = [ProcessWorker(one, start_timeout_s=START_S) for one in loads]
        with pytest.raises(CheckpointError, match="different precision: cpu in float32, cpu in bfloat16"):
            await load_all(workers)
        assert all(process.lost.done() for process in workers)

    run(main())


def test_a_worker_that_comes_back_in_another_precision_is_refused() -> None:
    async def main() -> None:
        worker = ProcessWorker(load(measured=False), start_timeout_s=START_S)
        [loaded] = await load_all([worker])
        await worker.end()
        worker.expect(replace(loaded.model, description={"precision": "fp8"}))
        with pytest.raises(StartFailed, match="scores in float32 now, not in fp8"):
            await worker.start()
        assert worker.lost.done()

    run(main())


def test_a_worker_that_is_not_ready_in_time_is_ended() -> None:
    async def main() -> None:
        slow = ProcessWorker(load(), start_timeout_s=0.01)
        with pytest.raises(StartFailed, match=r"not ready after 0\.01 s"):
            await slow.start()
        assert slow.lost.done()

    run(main())


def test_a_batch_in_which_the_backend_raises_fails_only_who_makes_it_raise() -> None:
    async def main() -> None:
        async with worker(FAULTY) as (process, _):
            batch = candidates(FakePreparer(), ["raise", "a", "b", "no memory", "c"])
            answer = await process.score(batch)
            kinds = [type(outcome) for outcome in answer.scored.outcomes]
            assert kinds == [InternalError, Score, Score, DeviceMemoryTaken, Score]
            assert answer.failures > 0

    run(main())


def test_answers_that_will_never_come_raise_at_once() -> None:
    async def main() -> None:
        async with worker(FAULTY) as (process, _):
            batch = candidates(FakePreparer(), ["hang"])
            waiting = [asyncio.ensure_future(process.score(batch)) for _ in range(2)]
            await asyncio.sleep(0)
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            for answer in waiting:
                with pytest.raises(WorkerLost, match="SIGKILL"):
                    await answer
            assert process.lost.done()
            with pytest.raises(WorkerLost):
                await process.score(batch)

    run(main())


@asynccontextmanager
async def batching(workers: int, hang_timeout_s: float) -> AsyncIterator[Batcher]:
    processes = [
        ProcessWorker(load(number, workers), start_timeout_s=START_S, module=FAULTY) for number in range(workers)
    ]
    await load_all(processes)
    batcher = Batcher(
        processes, max_batch_tokens=4096, hang_timeout_s=hang_timeout_s, metrics=Metrics(CollectorRegistry())
    )
    batcher.start()
    try:
        yield batcher
    finally:
        await batcher.stop()


async def outcomes(batcher: Batcher, prepared: list[Candidate]) -> list[Score | Exception]:
    request = Request("", asyncio.get_running_loop().time() + 270, [len(prepared)])
    for entry, candidate in zip(request.entries, prepared, strict=True):
        entry.prepared = candidate
        batcher.put(entry)
    return [outcome.result for outcome in await request.outcomes()]


def test_a_candidate_that_kills_its_worker_alone_is_the_only_one_without_a_score(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("jrm_service.scoring.batcher._LONGEST_PAUSE_S", 0.0)

    async def main() -> None:
        async with batching(1, 60.0) as batcher:
            texts = ["a", "b", "segfault", "c", "d", "e"]
            results = await outcomes(batcher, candidates(FakePreparer(), texts))
            assert [type(result) for result in results] == [Score, Score, DeviceLost, Score, Score, Score]

    run(main())


FAULTS: dict[str, Callable[[int, Path], list[str]]] = {
    "segfault": lambda number, path: [f"segfault once {path / str(number)}"],
    "stopped": lambda number, path: [f"stop once {path / str(number)}"],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_worker_that_dies_or_stops_once_costs_no_score(fault: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with batching(2, 5.0) as batcher:
            texts = ["a", *FAULTS[fault](0, tmp_path), "b", "c"]
            prepared = candidates(FakePreparer(), texts)
            results = await outcomes(batcher, prepared)
            again = await outcomes(batcher, prepared)
            assert all(map(close, results, again))

    run(main())


def test_no_worker_outlives_a_server_that_is_killed_not_even_a_stopped_one() -> None:
    program = textwrap.dedent(
        f"""
        import asyncio, os, signal
        from jrm_service.device.channel import Load
        from jrm_service.device.process import ProcessWorker

        async def main():
            loads = {[load(0, 2), load(1, 2)]}
            workers = [ProcessWorker(load, start_timeout_s=240, module="{FAULTY}") for load in loads]
            await asyncio.gather(*(worker.start() for worker in workers))
            os.kill(workers[0].pid, signal.SIGSTOP)
            print(*(worker.pid for worker in workers), flush=True)
            await asyncio.sleep(240)

        asyncio.run(main())
        """
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        pids = [int(pid) for pid in server.stdout.readline().split()]
        watched = [os.pidfd_open(pid) for pid in pids]
        server.kill()
    assert len(pids) == 2
    for descriptor in watched:
        asyncio.run(_ended(descriptor))
        os.close(descriptor)


async def _ended(descriptor: int) -> None:
    """Wait until the process has ended: its descriptor becomes readable then."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    loop.add_reader(descriptor, done.set)
    try:
        await asyncio.wait_for(done.wait(), 60)
    finally:
        loop.remove_reader(descriptor)
