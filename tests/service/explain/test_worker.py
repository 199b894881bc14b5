"""A real worker process that writes critiques, with a scripted engine: what comes back, and what becomes of it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, closing
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from jrm_service.device.channel import Channel
from jrm_service.errors import CheckpointError, ExplainSetupError, ExplainUnavailable
from jrm_service.explain.engine import EngineWriter
from jrm_service.explain.worker import ExplainWorker
from jrm_service.explain.worker_messages import CheckpointOpened, OpenCheckpoint
from jrm_service.explain.writer import EngineFailed, Piece, Prompt
from jrm_service.metrics import Metrics
from jrm_service.model.checkpoint import open_checkpoint
from jrm_service.model.checkpoint_source import BUNDLED
from jrm_service.model.explain_main import _open as open_in_worker
from jrm_service.scoring.backend import StartFailed
from support import checkpoints, scripted_explainer

TESTS = str(Path(__file__).parents[2])
MODULE = "support.scripted_explainer"


@pytest.fixture(autouse=True)
def scripted_explainers_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([TESTS, os.environ.get("PYTHONPATH", "")]))


def opening(**changes) -> OpenCheckpoint:
    settings = {
        "checkpoint": None,
        "devices": ["cpu"],
        "dtype": "auto",
        "allow_pipeline_drift": False,
        "context": 8192,
        "concurrency": 4,
        "gpu_share": 0.45,
        "cache_gib": 1.0,
        "scorer": False,
        "available": None,
        "hashed": True,
    }
    return OpenCheckpoint(**settings | changes)


def opened_here(**changes) -> CheckpointOpened:
    """What a process tells of a checkpoint, or raises, without starting one."""
    ours, theirs = map(Channel, socket.socketpair())
    with closing(ours), closing(theirs):
        open_in_worker(opening(**changes), theirs)
        return ours.receive()


def run(main: Awaitable[None]) -> None:
    asyncio.run(asyncio.wait_for(main, 280))


@asynccontextmanager
async def worker(**changes) -> AsyncIterator[tuple[ExplainWorker, CheckpointOpened]]:
    started = ExplainWorker(opening(**changes), start_timeout_s=240, module=MODULE)
    try:
        yield started, await started.open()
    finally:
        await started.end()


def scripted() -> AbstractAsyncContextManager[tuple[ExplainWorker, CheckpointOpened]]:
    return worker(checkpoint=scripted_explainer.NO_CHECKPOINT)


PROMPT = Prompt([1, 2, 3], [np.zeros((32, 32, 3), np.uint8)], 4)


async def answer(explainer: ExplainWorker, max_tokens: int = 3) -> list[Piece]:
    async with aclosing(explainer.answer(PROMPT, max_tokens=max_tokens, schema=None)) as pieces:
        return [piece async for piece in pieces]


async def begun(explainer: ExplainWorker) -> asyncio.Task[list[Piece]]:
    """An answer of which there is a first word, and never a second."""
    heard = asyncio.Event()

    async def read() -> list[Piece]:
        async with aclosing(explainer.answer(PROMPT, max_tokens=scripted_explainer.SLOW, schema=None)) as pieces:
            async for _ in pieces:
                heard.set()
        return []

    reading = asyncio.create_task(read())
    await heard.wait()
    return reading


async def all_told(explainer: ExplainWorker) -> None:
    """Until the process has told the end of every answer: one that is asked last is told last."""
    while explainer.unfinished:
        await answer(explainer)


def test_what_it_tells_of_a_checkpoint_is_what_this_process_reads_of_it() -> None:
    async def main() -> None:
        here = open_checkpoint(BUNDLED)
        async with worker() as (_, opened):
            assert opened.model.fingerprint == here.fingerprint
            assert opened.dimensions == {"instruction_following": True, "visual_quality": False}
            assert opened.context == here.config.text_config.max_position_embeddings
            assert opened.placeholder == here.config.image_token_id
            assert opened.builder.prompts == here.builder.prompts

    run(main())
    opened = opened_here(hashed=False, context=100)
    assert (opened.model.fingerprint, opened.context) == ("", 100)


def test_answers_come_in_pieces_and_each_to_its_caller() -> None:
    async def main() -> None:
        async with scripted() as (explainer, _):
            await explainer.start()
            lengths = [1, 5, 2, 40]
            answers = await asyncio.gather(*(answer(explainer, length) for length in lengths))
            assert [len(pieces) for pieces in answers] == lengths
            assert answers[1] == [*(Piece("word ", None, n) for n in range(1, 5)), Piece("end", "length", 5)]
            for tokens, told in (
                (scripted_explainer.FAIL, "for a test"),
                (scripted_explainer.RAISE, "could not answer"),
            ):
                with pytest.raises(EngineFailed, match=told):
                    await answer(explainer, tokens)
            assert (explainer.unfinished, explainer.silent_since) == (0, None)

    run(main())


def test_an_answer_that_nobody_waits_for_is_stopped() -> None:
    async def main() -> None:
        async with scripted() as (explainer, _):
            await explainer.start()
            waiting = [await begun(explainer) for _ in range(3)]
            unread = asyncio.create_task(answer(explainer, scripted_explainer.SLOW))
            await asyncio.sleep(0)  # so that it is cancelled before the process has heard of it
            assert explainer.unfinished == 4
            assert explainer.silent_since is not None
            for task in (*waiting, unread):
                task.cancel()
            await asyncio.gather(*waiting, unread, return_exceptions=True)
            await all_told(explainer)
            assert explainer.silent_since is None

    run(main())


def test_answers_of_a_process_that_dies_fail_at_once_and_it_can_be_started_again() -> None:
    async def main() -> None:
        async with scripted() as (explainer, opened):
            explainer.expect(opened.model.fingerprint)
            await explainer.start()
            waiting = [await begun(explainer) for _ in range(2)]
            assert explainer.pid is not None
            os.kill(explainer.pid, signal.SIGKILL)
            for task in waiting:
                with pytest.raises(EngineFailed, match="the engine died"):
                    await task
            assert explainer.lost.done()
            assert explainer.unfinished == 0
            with pytest.raises(EngineFailed, match="the engine died"):
                await answer(explainer)
            await explainer.start()
            assert len(await answer(explainer)) == 3
            with pytest.raises(EngineFailed, match="the engine died"):
                await answer(explainer, scripted_explainer.SEGFAULT)

    run(main())


def test_one_that_is_started_again_must_find_the_same_checkpoint(tmp_path: Path) -> None:
    async def main() -> None:
        path = checkpoints.write(tmp_path / "checkpoint", checkpoints.one_pass())
        async with worker(checkpoint=str(path)) as (explainer, opened):
            explainer.expect(opened.model.fingerprint)
            await explainer.start()
            await explainer.end()
            manifest = path / "reward" / "manifest.json"
            manifest.write_text(manifest.read_text().replace('"regions": true', '"regions": false'))
            with pytest.raises(StartFailed, match="the checkpoint has become another"):
                await explainer.start()

    run(main())


def test_what_keeps_it_from_explaining_is_told(tmp_path: Path) -> None:
    broken = checkpoints.write(tmp_path / "broken", checkpoints.one_pass())
    (broken / "reward" / "manifest.json").write_text("{}")
    for changes, told in (
        ({"checkpoint": str(tmp_path)}, "reward/manifest.json"),
        ({"checkpoint": str(broken)}, "reward/manifest.json: name: Field required"),
        ({"cache_gib": 0.001}, "one sequence of 2048 tokens needs 0.01 GiB"),
        ({"cache_gib": 1e6, "available": 2**30, "scorer": True}, "1.00 GiB of memory are free"),
    ):
        with pytest.raises((CheckpointError, ExplainSetupError)) as refused:
            opened_here(**changes)
        assert told in "\n".join(refused.value.problems), changes


def test_one_that_is_stopped_while_it_writes_is_taken_for_hung_and_replaced() -> None:
    async def main() -> None:
        async with scripted() as (explainer, _):
            writer = EngineWriter(explainer, Metrics(CollectorRegistry()), hang_timeout_s=3)
            await writer.start()
            waiting, stopped = await begun(explainer), explainer.pid
            assert stopped is not None
            os.kill(stopped, signal.SIGSTOP)
            with pytest.raises(EngineFailed):
                await waiting
            with pytest.raises(ExplainUnavailable, match="the engine hung") as refused:
                writer.check()
            assert refused.value.retry_after is not None
            while writer.state()[0] != "ready":  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.05)
            assert explainer.pid != stopped
            assert len(await answer(explainer)) == 3
            await writer.stop()
            assert explainer.lost.done()

    run(main())
