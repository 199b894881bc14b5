"""The running batcher: what shares a batch, what is sent ahead, and what never reaches a device. On a virtual clock."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import CollectorRegistry

from jrm_service.errors import DeadlineExceeded, NotReady
from jrm_service.metrics import Metrics
from jrm_service.scoring.batcher import Batcher
from jrm_service.scoring.fakes import FakeBackend, NaNBackend, RaisingBackend, fake_score
from jrm_service.scoring.local import LocalWorker
from jrm_service.scoring.worker_slot import State
from service.scoring.support import Counts, LoopWorker, candidate, now, request_of, run, run_virtual, running, score


def sizes(batches: list[tuple[object, ...]]) -> list[int]:
    return [len(batch) for batch in batches]


def test_every_candidate_gets_its_own_score_in_order() -> None:
    async def main() -> None:
        async with running(LoopWorker(), budget=3) as batcher:
            candidates = [candidate() for _ in range(10)]
            assert await score(batcher, candidates) == [fake_score(one) for one in candidates]

    run_virtual(main())


def test_the_same_with_a_thread() -> None:
    async def main() -> None:
        async with running(LocalWorker(FakeBackend()), LocalWorker(FakeBackend()), budget=3) as batcher:
            candidates = [candidate() for _ in range(100)]
            requests = [score(batcher, candidates[start : start + 5]) for start in range(0, 100, 5)]
            results = [result for results in await asyncio.gather(*requests) for result in results]
            assert results == [fake_score(one) for one in candidates]

    run(main())


def test_a_batcher_has_workers_and_is_started_once() -> None:
    async def main() -> None:
        metrics = Metrics(CollectorRegistry())
        with pytest.raises(ValueError, match="at least one worker"):
            Batcher([], max_batch_tokens=1, hang_timeout_s=1.0, metrics=metrics)
        worker = LoopWorker()
        batcher = Batcher([worker], max_batch_tokens=1, hang_timeout_s=1.0, metrics=metrics)
        with pytest.raises(NotReady):
            batcher.check_ready()
        await worker.start()
        batcher.start()
        batcher.check_ready()
        with pytest.raises(RuntimeError, match="started once"):
            batcher.start()
        await batcher.stop()
        assert (batcher.alive, worker.ends) == (0, 1)
        with pytest.raises(NotReady):
            batcher.check_ready()

    run_virtual(main())


def test_outcomes_carry_their_times_and_their_share_of_the_tokens() -> None:
    async def main() -> None:
        async with running(LoopWorker(seconds=2.0)) as batcher:
            first = asyncio.create_task(score(batcher, [candidate()]))
            await asyncio.sleep(0.5)
            request = request_of([candidate(tokens=30), candidate(tokens=10)])
            for entry in request.entries:
                batcher.put(entry)
            outcomes = await request.outcomes()
            await first
            assert [outcome.queue_ms for outcome in outcomes] == [1500.0, 1500.0]
            assert [outcome.inference_ms for outcome in outcomes] == [2000.0, 2000.0]
            assert [outcome.tokens_computed for outcome in outcomes] == [30, 10]

    run_virtual(main())


def test_singles_that_arrive_while_the_device_works_share_a_batch() -> None:
    async def main() -> None:
        metrics = Metrics(CollectorRegistry())
        drained: list[int] = []
        worker = LoopWorker()
        async with running(worker, metrics=metrics, on_drained=drained.append) as batcher:
            await asyncio.gather(*(score(batcher, [candidate()]) for _ in range(64)))
        assert sizes(worker.batches)[-1] > 32
        counts = Counts(metrics)
        assert counts("jrm_batch_candidates_sum") == counts("jrm_batch_tokens_sum") == sum(drained) == 64
        assert counts("jrm_queue_wait_seconds_count") == 64
        assert counts("jrm_batch_candidates_count") == len(worker.batches) <= 3

    run_virtual(main())


def test_the_next_batch_is_sent_ahead_once_it_is_full_and_no_sooner() -> None:
    async def main() -> None:
        worker = LoopWorker()
        async with running(worker, budget=4) as batcher:
            requests = [asyncio.create_task(score(batcher, [candidate()]))]
            await asyncio.sleep(0.1)
            requests.append(asyncio.create_task(score(batcher, [candidate() for _ in range(3)])))
            await asyncio.sleep(0.1)
            assert sizes(worker.sent) == [1]  # three of four: whoever comes may still join
            requests.append(asyncio.create_task(score(batcher, [candidate() for _ in range(6)])))
            await asyncio.sleep(0.1)
            assert (sizes(worker.sent), sizes(worker.batches)) == ([1, 4], [1])
            await asyncio.gather(*requests)
        assert sizes(worker.batches) == [1, 4, 4, 1]

    run_virtual(main())


def test_nothing_is_sent_ahead_that_an_idle_worker_could_begin() -> None:
    async def main() -> None:
        workers = [LoopWorker(), LoopWorker()]
        async with running(*workers, budget=1) as batcher:
            began = now()
            await asyncio.gather(*(score(batcher, [candidate()]) for _ in range(2)))
            assert now() - began == 1.0
        assert [sizes(worker.batches) for worker in workers] == [[1], [1]]

    run_virtual(main())


def test_a_single_waits_for_two_batches_of_a_large_caller_not_for_all() -> None:
    async def main() -> None:
        worker = LoopWorker()
        async with running(worker, budget=10) as batcher:
            thousand = [candidate(source="x") for _ in range(1000)]
            large = asyncio.create_task(score(batcher, thousand))
            await asyncio.sleep(0.5)
            single = candidate()
            await score(batcher, [single])
            assert single in worker.batches[2]  # after the one on the device and the one sent ahead
            assert not large.done()
            await large

    run_virtual(main())


def test_who_left_or_ran_out_of_time_while_waiting_never_reaches_the_device() -> None:
    async def main() -> None:
        worker = LoopWorker()
        async with running(worker) as batcher:
            first = asyncio.create_task(score(batcher, [candidate()]))
            await asyncio.sleep(0.1)
            leaving, late, stays = [candidate(), candidate()], [candidate()], candidate()
            left = asyncio.create_task(score(batcher, leaving))
            timed_out = asyncio.create_task(score(batcher, late, timeout_s=0.2))
            stayed = asyncio.create_task(score(batcher, [stays]))
            await asyncio.sleep(0)
            left.cancel()
            assert [type(result) for result in await timed_out] == [DeadlineExceeded]
            assert now() == pytest.approx(0.3)
            await asyncio.gather(first, stayed)
        assert worker.batches[1:] == [(stays,)]

    run_virtual(main())


def test_a_deadline_is_kept_while_the_device_works_and_the_late_score_is_dropped() -> None:
    async def main() -> None:
        async with running(LoopWorker(seconds=10.0)) as batcher:
            [result] = await score(batcher, [candidate()], timeout_s=3.0)
            assert isinstance(result, DeadlineExceeded)
            assert str(result) == "timeout_ms passed while a device was scoring it"
            assert now() == 3.0
            assert [type(result) for result in await score(batcher, [candidate()])] != [DeadlineExceeded]

    run_virtual(main())


def test_every_request_keeps_its_own_deadline() -> None:
    async def main() -> None:
        async with running(LoopWorker(seconds=10.0)) as batcher:
            same = candidate()
            ends: dict[float, float] = {}

            async def call(timeout_s: float) -> None:
                await score(batcher, [same], timeout_s)
                ends[timeout_s] = now()

            await asyncio.gather(*map(call, (50.0, 2.0, 5.0)))
            assert ends == {2.0: 2.0, 5.0: 5.0, 50.0: 10.0}

    run_virtual(main())


def test_a_score_of_a_caller_who_has_left_is_not_lost_to_the_cache() -> None:
    async def main() -> None:
        told: list[object] = []
        async with running(LoopWorker(), on_score=lambda scored, _score: told.append(scored)) as batcher:
            one = candidate()
            leaving = asyncio.create_task(score(batcher, [one]))
            await asyncio.sleep(0.5)
            leaving.cancel()
            await asyncio.sleep(1.0)
            assert told == [one]

    run_virtual(main())


def test_what_a_backend_gets_wrong_is_each_candidates_own() -> None:
    async def main() -> None:
        backend = NaNBackend(
            RaisingBackend(FakeBackend(), when=lambda one: one.instruction == "raise"),
            when=lambda one: one.instruction == "nan",
        )
        metrics = Metrics(CollectorRegistry())
        async with running(LoopWorker(backend), metrics=metrics) as batcher:
            candidates = [candidate(instruction=text) for text in ("edit", "nan", "raise", "edit")]
            good, nan, raised, other = await score(batcher, candidates)
            assert batcher.alive == 1
        assert [good, other] == [fake_score(candidates[0]), fake_score(candidates[3])]
        assert (nan.code, raised.code) == ("non_finite_score", "internal")
        assert Counts(metrics)("jrm_batch_failures_total") == 3  # the four, the half, and the culprit

    run_virtual(main())


def test_how_busy_a_device_is_can_be_read() -> None:
    async def main() -> None:
        metrics = Metrics(CollectorRegistry())
        async with running(LoopWorker(seconds=600.0), metrics=metrics, hang_timeout_s=10_000.0) as batcher:
            await score(batcher, [candidate()])
            assert Counts(metrics)("jrm_device_busy_ratio", worker="0", device="fake") == pytest.approx(1.0, abs=0.01)
            await asyncio.sleep(600.0)
            assert Counts(metrics)("jrm_device_busy_ratio", worker="0", device="fake") == pytest.approx(0.0, abs=0.01)
            assert batcher.states == [State.IDLE]

    run_virtual(main())


def test_stopping_lets_a_batch_on_a_device_come_to_its_end_within_its_patience() -> None:
    async def main() -> None:
        for patience_s, took in ((5.0, 5.0), (0.0, 0.0)):
            async with running(LoopWorker(seconds=600.0), patience_s=patience_s) as batcher:
                scoring = asyncio.create_task(score(batcher, [candidate()]))
                await asyncio.sleep(1.0)
                stopped = now()
            assert now() - stopped == took
            assert batcher.states == [State.FAILED]
            scoring.cancel()

    run_virtual(main())
