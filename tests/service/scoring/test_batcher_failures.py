"""Backends that raise, lie, hang or die: exactly the candidates concerned fail, each with its typed error."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence

import pytest
from prometheus_client import CollectorRegistry

from jrm_service.errors import CandidateTooLarge, InternalError, NoMemory, NonFiniteScore, NotReady, NoWorker
from jrm_service.metrics import Metrics
from jrm_service.scoring.backend import Scored, WorkerLost
from jrm_service.scoring.fakes import (
    FakeBackend,
    FakeBatch,
    NaNBackend,
    OutOfMemoryBackend,
    RaisingBackend,
    RecordingBackend,
    SlowBackend,
    fake_score,
)
from jrm_service.scoring.types import Candidate, Score
from jrm_service.scoring.worker import State
from service.scoring.support import Counts, candidate, run, running, score, until


def boom(one: Candidate) -> bool:
    return one.instruction == "boom"


class TooShort(FakeBackend):
    """Forgets the last outcome of a batch that has an unwelcome candidate."""

    def score(self, batch: FakeBatch) -> Scored:
        scored = super().score(batch)
        return Scored(scored.outcomes[:-1], 0) if any(map(boom, batch)) else scored


class RaisingCollate(FakeBackend):
    """Cannot build a batch that has an unwelcome candidate."""

    def __init__(self, error: Callable[[], Exception]) -> None:
        super().__init__()
        self._error = error

    def collate(self, candidates: Sequence[Candidate]) -> FakeBatch:
        if any(map(boom, candidates)):
            raise self._error()
        return super().collate(candidates)


def mixed(*positions: int, size: int = 12) -> list[Candidate]:
    return [candidate(instruction="boom" if index in positions else "edit") for index in range(size)]


@pytest.mark.parametrize("positions", [(0,), (5,), (11,), (2, 3), (0, 7, 11), tuple(range(12))])
@pytest.mark.parametrize(
    "make",
    [
        lambda: RaisingBackend(FakeBackend(), when=boom, error=lambda: ValueError("/srv/secret/path.py")),
        lambda: RaisingCollate(lambda: KeyError("image")),
    ],
    ids=["raises", "collate"],
)
def test_only_the_candidates_that_make_the_backend_raise_fail(
    make: Callable[[], FakeBackend], positions: tuple[int, ...]
) -> None:
    async def main() -> None:
        metrics = Metrics(CollectorRegistry())
        async with running(make(), metrics=metrics) as batcher:
            candidates = mixed(*positions)
            results = await score(batcher, candidates)
            assert batcher.alive == 1
        for index, (one, result) in enumerate(zip(candidates, results, strict=True)):
            if index in positions:
                assert isinstance(result, InternalError)
                assert str(result).startswith("the backend raised ")
                assert "/" not in str(result)
            else:
                assert result == fake_score(one)
        assert Counts(metrics)("jrm_batch_failures_total") >= len(positions)

    run(main())


def test_a_batch_too_large_for_the_memory_is_scored_in_pieces() -> None:
    async def main() -> None:
        candidates = mixed()
        recording = RecordingBackend(OutOfMemoryBackend(FakeBackend(), tokens=3 * candidates[0].tokens))
        async with running(recording) as batcher:
            assert await score(batcher, candidates) == [fake_score(one) for one in candidates]
        assert [len(batch) for batch in recording.batches] == [12, 6, 3, 3, 6, 3, 3]

    run(main())


@pytest.mark.parametrize("position", [0, 5, 11])
def test_a_candidate_too_large_for_the_memory_alone_has_its_own_error(position: int) -> None:
    async def main() -> None:
        metrics = Metrics(CollectorRegistry())
        candidates = mixed()
        candidates[position] = candidate(tokens=7)
        small = OutOfMemoryBackend(FakeBackend(), tokens=6)
        async with running(small, metrics=metrics, budget=6) as batcher:
            results = await score(batcher, candidates)
            assert batcher.alive == 1
        too_large = results.pop(position)
        assert isinstance(too_large, CandidateTooLarge)
        del candidates[position]
        assert str(too_large).startswith("7 tokens do not fit")
        assert results == [fake_score(one) for one in candidates]
        assert Counts(metrics).outcomes() == {"ok": 11, "candidate_too_large": 1}

    run(main())


def test_memory_that_others_hold_is_not_the_candidates_fault() -> None:
    """It is within the budget, which was measured on the device: there is room for it, only not now."""

    async def main() -> None:
        metrics = Metrics(CollectorRegistry())
        candidates = [candidate(tokens=tokens) for tokens in (2, 7, 3)]
        crowded = OutOfMemoryBackend(FakeBackend(), tokens=6)
        async with running(crowded, metrics=metrics, budget=7) as batcher:
            small, large, other = await score(batcher, candidates)
            assert batcher.alive == 1
        assert isinstance(large, NoMemory)
        assert [small, other] == [fake_score(candidates[0]), fake_score(candidates[2])]
        assert Counts(metrics).outcomes() == {"ok": 2, "no_memory": 1}

    run(main())


def test_the_exception_is_logged_with_its_traceback_and_not_kept(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with running(RaisingBackend(FakeBackend(), error=lambda: ValueError("shape mismatch"))) as batcher:
            await score(batcher, [candidate()])

    with caplog.at_level(logging.ERROR):
        run(main())
    [record] = [record for record in caplog.records if "shape mismatch" in record.getMessage()]
    assert "Traceback" in record.getMessage()
    assert record.exc_info is None


def test_nan_fails_its_candidate_alone() -> None:
    async def main() -> None:
        async with running(NaNBackend(FakeBackend(), when=boom)) as batcher:
            candidates = mixed(4)
            results = await score(batcher, candidates)
        assert isinstance(results.pop(4), NonFiniteScore)
        del candidates[4]
        assert results == [fake_score(one) for one in candidates]

    run(main())


def test_a_wrong_number_of_outcomes_fails_the_batch_and_not_the_next() -> None:
    async def main() -> None:
        async with running(TooShort()) as batcher:
            results = await score(batcher, mixed(1, size=3))
            assert [type(result) for result in results] == [InternalError] * 3
            assert isinstance((await score(batcher, mixed(size=1)))[0], Score)

    run(main())


def test_who_leaves_during_the_search_for_a_culprit_is_not_run_again() -> None:
    class Leaving(RaisingBackend):
        """Lets the test act between the first run and the halves."""

        first_run = threading.Event()
        go_on = threading.Event()

        def score(self, batch: FakeBatch) -> Scored:
            self.first_run.set()
            self.go_on.wait()
            return super().score(batch)

    async def main() -> None:
        recording = RecordingBackend(Leaving(FakeBackend(), when=boom))
        async with running(recording) as batcher:
            with batcher.admit(2, 60.0) as staying:
                with batcher.admit(4, 60.0) as leaving:
                    for index, one in enumerate(mixed(0, size=4)):
                        leaving.put(index, one)
                    for index, one in enumerate(mixed(size=2)):
                        staying.put(index, one)
                    await asyncio.to_thread(Leaving.first_run.wait)
                Leaving.go_on.set()
                assert [outcome.label for outcome in await staying.outcomes()] == ["ok", "ok"]
        assert [len(batch) for batch in recording.batches] == [6, 2]

    run(main())


# --- workers that hang or die -----------------------------------------------------------------------------------------


def dying() -> RecordingBackend:
    return RecordingBackend(RaisingBackend(FakeBackend("dead"), error=lambda: WorkerLost("fell off the bus")))


def test_a_dead_workers_candidates_are_scored_elsewhere() -> None:
    async def main() -> None:
        dead, other = dying(), RecordingBackend(FakeBackend("other"))
        metrics = Metrics(CollectorRegistry())
        async with running(dead, other, metrics=metrics) as batcher:
            candidates = mixed()
            assert await score(batcher, candidates) == [fake_score(one) for one in candidates]
            assert await score(batcher, candidates) == [fake_score(one) for one in candidates]
            assert [(status.device, status.state.value) for status in batcher.workers] == [
                ("dead", "lost"),
                ("other", "idle"),
            ]
            batcher.check_ready()
            counts = Counts(metrics)
            assert counts("jrm_workers") == 2
            assert counts("jrm_workers_alive") == batcher.alive == 1
            assert counts("jrm_worker_failures_total", worker="0", device="dead", reason="lost") == 1
        assert [len(batch) for batch in dead.batches] == [12]
        assert [len(batch) for batch in other.batches] == [12, 12]

    run(main())


@pytest.mark.parametrize("error", [WorkerLost, SystemExit, KeyboardInterrupt])
def test_a_retry_that_dies_too_is_a_typed_error_and_never_a_third_run(error: type[BaseException]) -> None:
    async def main() -> None:
        backends = [
            RecordingBackend(RaisingBackend(FakeBackend(), when=boom, error=lambda: error("gone"))) for _ in range(3)
        ]
        async with running(*backends) as batcher:
            [result] = await score(batcher, mixed(0, size=1))
            assert isinstance(result, InternalError)
            assert "died" in str(result)
            assert "already its retry" in str(result)
            assert batcher.alive == 1
            assert isinstance((await score(batcher, mixed(size=1)))[0], Score)
        assert sum(map(boom, [one for backend in backends for one in backend.seen])) == 2

    run(main())


def test_without_a_live_worker_nobody_waits_and_nobody_is_admitted() -> None:
    async def main() -> None:
        slow = SlowBackend(RaisingBackend(FakeBackend(), error=lambda: WorkerLost("gone")), gated=True)
        async with running(slow, budget=1) as batcher:
            tasks = [asyncio.create_task(score(batcher, mixed(size=3))) for _ in range(3)]
            await asyncio.to_thread(slow.wait_entered)
            slow.open()
            for results in await asyncio.gather(*tasks):
                assert [type(result) for result in results] == [NoWorker] * 3
            assert batcher.alive == 0
            with pytest.raises(NotReady):
                batcher.admit(1, 60.0)
            with pytest.raises(NotReady):
                batcher.check_ready()
            await batcher.drain()

    run(main())


def test_a_worker_lost_while_collating_is_lost_too() -> None:
    async def main() -> None:
        async with running(RaisingCollate(lambda: WorkerLost("no memory to pin")), FakeBackend()) as batcher:
            assert isinstance((await score(batcher, mixed(0, size=1)))[0], Score)
            assert batcher.alive == 1

    run(main())


def test_a_hung_workers_candidates_are_scored_elsewhere_and_it_rejoins() -> None:
    async def main() -> None:
        slow = SlowBackend(FakeBackend("slow"), gated=True)
        hanging, other = RecordingBackend(slow), RecordingBackend(FakeBackend("other"))
        metrics = Metrics(CollectorRegistry())
        async with running(hanging, other, hang_timeout_s=0.05, metrics=metrics) as batcher:
            candidates = mixed(size=3)
            assert await score(batcher, candidates) == [fake_score(one) for one in candidates]
            assert batcher.workers[0].state is State.HUNG
            assert await score(batcher, mixed(size=1))
            assert len(hanging.batches) == 1
            slow.open()
            await until(lambda: batcher.alive == 2)
            assert await score(batcher, mixed(size=1))
        counts = Counts(metrics)
        assert counts("jrm_worker_failures_total", worker="0", device="slow", reason="hung") == 1
        assert counts.outcomes() == {"ok": 5}

    run(main())


def test_the_only_worker_hangs_and_comes_back() -> None:
    async def main() -> None:
        slow = SlowBackend(FakeBackend(), gated=True)
        async with running(slow, budget=1, hang_timeout_s=0.05) as batcher:
            results = await score(batcher, mixed(size=3))
            assert [type(result) for result in results] == [NoWorker] * 3
            assert "hung" in str(results[0])
            with pytest.raises(NotReady):
                batcher.admit(1, 60.0)
            slow.open()
            await until(lambda: batcher.alive == 1)
            assert isinstance((await score(batcher, mixed(size=1)))[0], Score)

    run(main())


def test_a_hung_worker_that_comes_back_dead_stays_out() -> None:
    async def main() -> None:
        slow = SlowBackend(RaisingBackend(FakeBackend(), error=lambda: WorkerLost("gone")), gated=True)
        async with running(slow, hang_timeout_s=0.05) as batcher:
            await score(batcher, mixed(size=1))
            slow.open()
            await until(lambda: batcher.workers[0].state is State.LOST)
            assert batcher.alive == 0

    run(main())


def test_what_a_hung_worker_had_collated_ahead_goes_to_the_other() -> None:
    async def main() -> None:
        slow, other = SlowBackend(FakeBackend(), gated=True), SlowBackend(FakeBackend(), gated=True)
        async with running(slow, other, budget=1, hang_timeout_s=0.2) as batcher:
            scoring = asyncio.create_task(score(batcher, mixed(size=4)))
            await asyncio.to_thread(slow.wait_entered)
            await asyncio.to_thread(other.wait_entered)
            other.open()
            assert all(isinstance(result, Score) for result in await scoring)
            slow.open()

    run(main())


def test_a_free_worker_takes_what_was_collated_for_a_busy_one() -> None:
    async def main() -> None:
        slow, other = SlowBackend(FakeBackend(), gated=True), SlowBackend(FakeBackend(), gated=True)
        async with running(slow, other, budget=1) as batcher:
            stuck = asyncio.create_task(score(batcher, mixed(size=1)))
            await asyncio.to_thread(slow.wait_entered)
            scoring = asyncio.create_task(score(batcher, mixed(size=3)))
            await asyncio.to_thread(other.wait_entered)
            other.open()
            assert all(isinstance(result, Score) for result in await scoring)
            assert not stuck.done()
            slow.open()
            await stuck

    run(main())


def test_stopping_does_not_wait_for_a_hung_thread() -> None:
    slow = SlowBackend(FakeBackend(), gated=True)
    before = set(threading.enumerate())

    async def main() -> None:
        async with running(slow, grace_s=0.01) as batcher:
            scoring = asyncio.create_task(score(batcher, mixed(size=1)))
            await asyncio.to_thread(slow.wait_entered)
        assert isinstance((await scoring)[0], InternalError)

    run(main())
    [left] = set(threading.enumerate()) - before
    assert left.daemon
    slow.open()  # it comes back when the event loop is long gone
    left.join()


def test_a_cost_function_that_breaks_loses_the_worker_and_leaves_nobody_waiting() -> None:
    def cost(candidates: Sequence[Candidate]) -> int:
        if len(candidates) > 1:
            raise ZeroDivisionError
        return 1

    async def main() -> None:
        slow = SlowBackend(FakeBackend(), gated=True)
        async with running(slow, cost=cost) as batcher:
            scoring = [asyncio.create_task(score(batcher, mixed(size=1))) for _ in range(3)]
            await asyncio.gather(*scoring, return_exceptions=True)
            assert batcher.depth == 0

    run(main())
