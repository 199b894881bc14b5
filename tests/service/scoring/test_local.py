"""Scoring in this process: backends that raise, lie, hang or lose their device."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import weakref
from collections.abc import Callable, Sequence

import pytest

from jrm_service.errors import DeviceMemoryTaken, InternalError
from jrm_service.scoring.backend import BatchResult, StartFailed, WorkerLost
from jrm_service.scoring.fakes import (
    FakeBackend,
    FakeBatch,
    OutOfMemoryBackend,
    RaisingBackend,
    RecordingBackend,
    SlowBackend,
    fake_score,
)
from jrm_service.scoring.local import LocalWorker, score_batch
from jrm_service.scoring.types import Candidate
from service.scoring.support import candidate, run


def boom(candidate: Candidate) -> bool:
    return candidate.instruction == "boom"


def mixed(*positions: int, size: int = 12) -> list[Candidate]:
    return [candidate(instruction="boom" if index in positions else "edit") for index in range(size)]


class RaisingCollate(FakeBackend):
    """Cannot build a batch that has an unwelcome candidate."""

    def __init__(self, error: Callable[[], Exception]) -> None:
        super().__init__()
        self._error = error

    def collate(self, candidates: Sequence[Candidate]) -> FakeBatch:
        if any(map(boom, candidates)):
            raise self._error()
        return super().collate(candidates)


class Counting(FakeBackend):
    """Reports what a model would: images encoded and reused, and the bytes of features."""

    def score(self, batch: FakeBatch) -> BatchResult:
        if len(batch) > 2:
            raise RuntimeError
        return BatchResult(
            super().score(batch).outcomes, 10, images_encoded=3, images_reused=2, feature_bytes=len(batch)
        )


@pytest.mark.parametrize(
    "make",
    [
        lambda: RaisingBackend(FakeBackend(), when=boom, error=lambda: ValueError("/srv/secret/path.py")),
        lambda: RaisingCollate(lambda: KeyError("image")),
    ],
    ids=["raises", "collate"],
)
def test_only_the_candidates_that_make_the_backend_raise_fail(make: Callable[[], FakeBackend]) -> None:
    for positions in [(0,), (5,), (11,), (2, 3), (0, 7, 11), tuple(range(12))]:
        candidates = mixed(*positions)
        answer = score_batch(make(), candidates)
        for index, (scored, result) in enumerate(zip(candidates, answer.scored.outcomes, strict=True)):
            if index in positions:
                assert isinstance(result, InternalError), positions
                assert str(result).startswith("the backend raised ")
                assert "/" not in str(result)
            else:
                assert result == fake_score(scored), positions
        assert answer.failures >= len(positions)


def test_a_batch_too_large_for_the_memory_is_scored_in_pieces() -> None:
    candidates = mixed()
    recording = RecordingBackend(OutOfMemoryBackend(FakeBackend(), tokens=3))
    answer = score_batch(recording, candidates)
    assert answer.scored.outcomes == [fake_score(one) for one in candidates]
    assert [len(batch) for batch in recording.batches] == [12, 6, 3, 3, 6, 3, 3]
    assert (answer.failures, answer.scored.tokens_computed) == (3, 12)


def test_a_candidate_too_large_for_the_memory_alone_has_its_own_error() -> None:
    for position in (0, 5, 11):
        candidates = mixed()
        candidates[position] = candidate(tokens=7)
        results = score_batch(OutOfMemoryBackend(FakeBackend(), tokens=6), candidates).scored.outcomes
        error = results.pop(position)
        assert isinstance(error, DeviceMemoryTaken)
        assert str(error).startswith("7 tokens do not fit")
        del candidates[position]
        assert results == [fake_score(one) for one in candidates]


def test_what_the_pieces_cost_is_added_up() -> None:
    scored = score_batch(Counting(), mixed(size=4)).scored
    assert (scored.tokens_computed, scored.images_encoded, scored.images_reused, scored.feature_bytes) == (20, 6, 4, 2)


def test_the_exception_is_logged_with_its_traceback_and_not_kept(caplog: pytest.LogCaptureFixture) -> None:
    class Tensor:
        """Stands for what the frames of an exception hold."""

    held: list[weakref.ref[Tensor]] = []

    class Holding(FakeBackend):
        def score(self, batch: FakeBatch) -> BatchResult:
            tensor = Tensor()
            assert not held or held[-1]() is None, "the frames of the last exception are still there"
            held.append(weakref.ref(tensor))
            raise ValueError("shape mismatch")

    gc.disable()  # a frame that only the collector frees holds memory until it comes
    try:
        with caplog.at_level(logging.ERROR):
            score_batch(Holding(), mixed(size=2))
    finally:
        gc.enable()
    records = [record for record in caplog.records if "shape mismatch" in record.getMessage()]
    assert len(records) == 3
    assert all("Traceback" in record.getMessage() and record.exc_info is None for record in records)


def test_a_lost_device_is_not_searched_for_a_culprit() -> None:
    recording = RecordingBackend(RaisingBackend(FakeBackend(), error=lambda: WorkerLost("fell off the bus")))
    with pytest.raises(WorkerLost):
        score_batch(recording, mixed())
    assert len(recording.batches) == 1


# --- the thread -------------------------------------------------------------------------------------------------------


def test_batches_are_scored_in_order_and_the_thread_ends() -> None:
    before = set(threading.enumerate())

    async def main() -> None:
        recording = RecordingBackend(FakeBackend("cuda:7"))
        worker = LocalWorker(recording)
        assert worker.device == "cuda:7"
        await worker.start()
        batches = [mixed(size=size) for size in (3, 1, 2)]
        answers = await asyncio.gather(*map(worker.score, batches))
        assert [answer.scored.outcomes for answer in answers] == [[fake_score(one) for one in b] for b in batches]
        assert [list(batch) for batch in recording.batches] == batches
        assert not worker.lost.done()
        await worker.end()

    run(main())
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.parametrize("error", [WorkerLost, SystemExit, KeyboardInterrupt])
def test_a_backend_that_loses_its_device_is_lost_for_good(error: type[BaseException]) -> None:
    async def main() -> None:
        worker = LocalWorker(RaisingBackend(FakeBackend(), error=lambda: error("gone")))
        await worker.start()
        with pytest.raises(WorkerLost):
            await worker.score(mixed())
        assert worker.lost.done()
        await worker.end()
        with pytest.raises(StartFailed, match="device is gone"):
            await worker.start()

    run(main())


def test_one_that_was_ended_answers_nobody_and_starts_again_when_its_call_has_come_back() -> None:
    async def main() -> None:
        slow = SlowBackend(FakeBackend(), gated=True)
        worker = LocalWorker(slow)
        await worker.start()
        answers = [asyncio.create_task(worker.score(mixed(size=1))) for _ in range(2)]
        await asyncio.to_thread(slow.wait_entered)
        await worker.end()
        assert [type(r) for r in await asyncio.gather(*answers, return_exceptions=True)] == [WorkerLost] * 2
        with pytest.raises(StartFailed, match="has not come back"):
            await worker.start()
        slow.open()
        assert worker._thread is not None
        await asyncio.to_thread(worker._thread.join, 30)
        await worker.start()
        candidates = mixed(size=1)
        assert (await worker.score(candidates)).scored.outcomes == [fake_score(candidates[0])]
        await worker.end()

    run(main())


def test_a_batch_under_way_has_the_patience_it_is_given() -> None:
    async def main() -> None:
        slow = SlowBackend(FakeBackend(), gated=True)
        worker = LocalWorker(slow)
        await worker.start()
        answer = asyncio.create_task(worker.score(mixed(size=1)))
        await asyncio.to_thread(slow.wait_entered)
        ending = asyncio.create_task(worker.end(patience_s=30.0))
        await asyncio.sleep(0)
        slow.open()
        assert len((await answer).scored.outcomes) == 1
        await ending

    run(main())


def test_a_call_that_hangs_keeps_no_process_and_comes_back_to_a_closed_loop() -> None:
    slow = SlowBackend(FakeBackend(), gated=True)
    before = set(threading.enumerate())

    async def main() -> None:
        worker = LocalWorker(slow)
        await worker.start()
        answer = asyncio.create_task(worker.score(mixed(size=1)))
        await asyncio.to_thread(slow.wait_entered)
        await worker.end(patience_s=0.01)
        with pytest.raises(WorkerLost):
            await answer

    run(main())
    [left] = [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("jrm-")]
    assert left.daemon
    slow.open()
    left.join(30)
    assert not left.is_alive()
