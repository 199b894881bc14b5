"""Workers that die, hang or do not start: what they had is tried again elsewhere, and they are started again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import pytest
from prometheus_client import CollectorRegistry

from jrm_service.errors import DeviceLost, NotReady
from jrm_service.metrics import Metrics
from jrm_service.scoring.backend import StartFailed
from jrm_service.scoring.batcher import MOST_FAILED_STARTS
from jrm_service.scoring.fakes import FakeBackend, RecordingBackend, SlowBackend, fake_score
from jrm_service.scoring.local import LocalWorker
from jrm_service.scoring.queue import MOST_TRIES
from jrm_service.scoring.types import Candidate, Score
from jrm_service.scoring.worker_slot import State
from service.scoring.support import Counts, LoopWorker, candidate, now, run, run_virtual, running, score, until


def boom(candidate: Candidate) -> bool:
    return candidate.instruction == "boom"


def mixed(*positions: int, size: int = 12) -> list[Candidate]:
    return [candidate(instruction="boom" if index in positions else "edit") for index in range(size)]


class Failures:
    """What a batcher was told through ``on_failed``, and when."""

    def __init__(self) -> None:
        self.told: list[tuple[str, float]] = []

    def __call__(self, error: BaseException) -> None:
        self.told.append((str(error), now()))


def test_one_candidate_that_kills_its_worker_is_device_lost_and_all_its_neighbours_have_scores() -> None:
    async def main() -> None:
        for workers in (1, 2, 3):
            for position in (0, 5, 11):
                metrics = Metrics(CollectorRegistry())
                made = [LoopWorker(kills=boom) for _ in range(workers)]
                candidates = mixed(position)
                async with running(*made, metrics=metrics) as batcher:
                    results = await score(batcher, candidates, timeout_s=10_000.0)
                    await asyncio.sleep(60.0)
                    assert batcher.alive == workers
                error = results.pop(position)
                assert isinstance(error, DeviceLost)
                assert str(error) == "the worker on fake died; it was tried 3 times"
                del candidates[position]
                assert results == [fake_score(one) for one in candidates]
                assert sum(worker.starts - 1 for worker in made) == MOST_TRIES
                counts = Counts(metrics)
                lost = [
                    counts("jrm_worker_failures_total", worker=str(number), device="fake", reason="lost")
                    for number in range(workers)
                ]
                assert sum(lost) == MOST_TRIES

    run_virtual(main())


def test_a_worker_that_dies_without_a_candidates_doing_costs_nobody_a_score() -> None:
    async def main() -> None:
        workers = [LoopWorker(seconds=10.0), LoopWorker(seconds=10.0)]
        candidates = mixed()
        async with running(*workers, budget=3) as batcher:
            scoring = asyncio.create_task(score(batcher, candidates))
            await asyncio.sleep(5.0)
            workers[0].die()
            assert await scoring == [fake_score(one) for one in candidates]
            assert (workers[0].starts, workers[1].starts) == (2, 1)

    run_virtual(main())


def test_an_idle_worker_that_dies_is_started_again() -> None:
    async def main() -> None:
        worker = LoopWorker()
        async with running(worker) as batcher:
            await asyncio.sleep(100.0)
            worker.die()
            await asyncio.sleep(0.1)
            assert (worker.starts, batcher.states) == (2, [State.IDLE])
            assert [type(result) for result in await score(batcher, mixed(size=1))] == [Score]

    run_virtual(main())


def test_what_was_sent_ahead_to_a_worker_that_died_is_no_try_and_goes_first() -> None:
    async def main() -> None:
        worker = LoopWorker(kills=boom)
        async with running(worker, budget=2) as batcher:
            killer, ahead, later = mixed(0, 1, size=2), mixed(size=2), mixed(size=2)
            scoring = [asyncio.create_task(score(batcher, some, 10_000.0)) for some in (killer, ahead, later)]
            await asyncio.sleep(0.5)
            assert worker.sent == [tuple(killer), tuple(ahead)]
            results = await asyncio.gather(*scoring)
            assert [type(result) for result in results[0]] == [DeviceLost] * 2
            assert results[1:] == [[fake_score(one) for one in some] for some in (ahead, later)]
        # Halves of two are singles; each is tried twice more.
        tries = [batch for batch in worker.batches if boom(batch[0])]
        assert [len(batch) for batch in tries] == [2, 1, 1, 1, 1]
        assert [batch for batch in worker.batches if not boom(batch[0])] == [tuple(ahead), tuple(later)]

    run_virtual(main())


def test_a_hung_worker_is_ended_and_its_batch_scored_by_another() -> None:
    async def main() -> None:
        metrics = Metrics(CollectorRegistry())
        hangs_once = iter([True])
        stuck = LoopWorker(FakeBackend("cuda:0"), hangs=lambda _candidate: next(hangs_once, False))
        other = LoopWorker(FakeBackend("cuda:1"))
        async with running(stuck, other, hang_timeout_s=100.0, metrics=metrics) as batcher:
            candidates = mixed(size=3)
            assert await score(batcher, candidates) == [fake_score(one) for one in candidates]
            assert now() == 101.0  # the silence, and both halves side by side
            assert (stuck.ends, stuck.starts) == (1, 2)
            assert batcher.alive == 2
        counts = Counts(metrics)
        assert counts("jrm_worker_failures_total", worker="0", device="cuda:0", reason="hung") == 1
        assert counts("jrm_worker_failures_total", worker="0", device="cuda:0", reason="lost") == 0

    run_virtual(main())


def test_silence_is_the_time_since_a_batch_was_begun_not_since_it_was_sent() -> None:
    async def main() -> None:
        worker = LoopWorker(seconds=80.0)
        async with running(worker, budget=2, hang_timeout_s=100.0) as batcher:
            candidates = mixed(size=6)
            assert await score(batcher, candidates) == [fake_score(one) for one in candidates]
            assert (now(), worker.starts) == (240.0, 1)

    run_virtual(main())


def test_an_idle_worker_does_not_hang() -> None:
    async def main() -> None:
        worker = LoopWorker()
        async with running(worker, hang_timeout_s=100.0) as batcher:
            await asyncio.sleep(10_000.0)
            assert (worker.starts, worker.ends, batcher.alive) == (1, 0, 1)

    run_virtual(main())


def test_one_candidate_that_hangs_its_worker_each_time_is_device_lost() -> None:
    async def main() -> None:
        candidates = mixed(4)
        async with running(LoopWorker(hangs=boom), LoopWorker(hangs=boom), hang_timeout_s=10.0) as batcher:
            results = await score(batcher, candidates, timeout_s=10_000.0)
        error = results.pop(4)
        assert isinstance(error, DeviceLost)
        assert "hung" in str(error)
        del candidates[4]
        assert results == [fake_score(one) for one in candidates]

    run_virtual(main())


def test_while_no_worker_is_alive_nobody_is_let_in_and_who_is_in_waits() -> None:
    async def main() -> None:
        worker = LoopWorker(kills=boom, failing_starts=2)
        async with running(worker, budget=1) as batcher:
            scoring = asyncio.create_task(score(batcher, mixed(size=3)))
            await asyncio.sleep(0.5)
            worker.die()
            await asyncio.sleep(0.1)
            assert (batcher.alive, batcher.states) == (0, [State.STARTING])
            with pytest.raises(NotReady) as refused:
                batcher.check_ready()
            assert refused.value.retry_after
            assert [type(result) for result in await scoring] == [Score] * 3
            batcher.check_ready()

    run_virtual(main())


def test_starts_that_fail_are_tried_again_with_longer_and_longer_pauses(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        worker, failures = LoopWorker(failing_starts=4), Failures()
        async with running(worker, on_failed=failures) as batcher:
            worker.die()
            await asyncio.sleep(0 + 1 + 2 + 4 + 7.9)
            assert (worker.starts, batcher.alive) == (5, 0)
            await asyncio.sleep(0.2)
            assert (worker.starts, batcher.alive, failures.told) == (6, 1, [])

    with caplog.at_level(logging.WARNING):
        run_virtual(main())
    assert caplog.text.count("does not start: no such device") == 4
    assert "worker 0 on fake is back" in caplog.text


def test_five_failed_starts_in_a_row_are_told_once_and_end_the_worker() -> None:
    async def main() -> None:
        gone, other = LoopWorker(failing_starts=100), LoopWorker()
        failures = Failures()
        async with running(gone, other, on_failed=failures) as batcher:
            gone.die()
            await asyncio.sleep(10_000.0)
            assert failures.told == [("no such device", 15.0)]
            assert gone.starts == 1 + MOST_FAILED_STARTS
            assert batcher.states == [State.FAILED, State.IDLE]
            assert [type(result) for result in await score(batcher, mixed(size=2))] == [Score] * 2

    run_virtual(main())


def test_a_server_that_stops_tells_nothing() -> None:
    async def main() -> None:
        worker, failures = LoopWorker(failing_starts=100), Failures()
        async with running(worker, on_failed=failures):
            worker.die()
            await asyncio.sleep(1.0)
        await asyncio.sleep(10_000.0)
        assert failures.told == []

    run_virtual(main())


def test_a_worker_that_dies_again_and_again_is_started_more_and_more_slowly() -> None:
    async def main() -> None:
        worker = LoopWorker()
        async with running(worker):
            pauses = []
            for _ in range(9):
                worker.die()
                died = now()
                await asyncio.sleep(40.0)
                pauses.append(worker.started[-1] - died)
            assert pauses == [0, 1, 2, 4, 8, 16, 30, 30, 30]
            await asyncio.sleep(61.0)
            worker.die()
            await asyncio.sleep(0.1)
            assert worker.starts == 11  # at once: it had lived for more than a minute

    run_virtual(main())


def test_a_cost_function_that_breaks_is_a_loss_and_the_deadlines_hold(caplog: pytest.LogCaptureFixture) -> None:
    def cost(candidates: Sequence[Candidate]) -> int:
        if len(candidates) > 1:
            raise ZeroDivisionError
        return 1

    async def main() -> None:
        async with running(LoopWorker(), cost=cost) as batcher:
            results = await score(batcher, mixed(size=2), timeout_s=60.0)
            assert {result.code for result in results} == {"deadline_exceeded"}
            assert now() == 60.0
            assert [type(result) for result in await score(batcher, mixed(size=1))] == [Score]

    run_virtual(main())
    assert "ZeroDivisionError" in caplog.text


# --- with a thread ----------------------------------------------------------------------------------------------------


def test_a_thread_that_hangs_is_left_and_its_batch_scored_elsewhere() -> None:
    async def main() -> None:
        slow = SlowBackend(FakeBackend("slow"), gated=True)
        stuck, other = LocalWorker(slow), LocalWorker(RecordingBackend(FakeBackend("other")))
        async with running(stuck, other, hang_timeout_s=0.05) as batcher:
            candidates = mixed(size=3)
            assert await score(batcher, candidates) == [fake_score(one) for one in candidates]
            assert batcher.states[0] is State.STARTING
            with pytest.raises(StartFailed, match="has not come back"):
                await stuck.start()
            slow.open()
            await until(lambda: batcher.alive == 2)

    run(main())
