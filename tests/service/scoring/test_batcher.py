"""Batching, admission and deadlines of the running batcher; the devices are gated fakes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest
from prometheus_client import CollectorRegistry

from jrm_service.errors import DeadlineExceeded, Draining, InternalError, InvalidImage, NotReady, Overloaded
from jrm_service.metrics import Metrics
from jrm_service.scoring.batcher import Batcher
from jrm_service.scoring.fakes import FakeBackend, FakeBatch, RecordingBackend, SlowBackend, fake_score
from jrm_service.scoring.types import Candidate
from jrm_service.scoring.worker import State
from service.scoring.support import Clock, Counts, candidate, run, running, score


class CollateSignal(RecordingBackend):
    """Tells when a batch has been collated."""

    def __init__(self, inner: SlowBackend) -> None:
        super().__init__(inner)
        self.signal = threading.Semaphore(0)

    def collate(self, candidates: Sequence[Candidate]) -> FakeBatch:
        batch = super().collate(candidates)
        self.signal.release()
        return batch

    async def wait(self) -> None:
        assert await asyncio.to_thread(self.signal.acquire, timeout=30)


def gated() -> tuple[SlowBackend, RecordingBackend]:
    slow = SlowBackend(FakeBackend(), gated=True)
    return slow, RecordingBackend(slow)


async def entered(slow: SlowBackend) -> None:
    await asyncio.to_thread(slow.wait_entered)


def test_every_candidate_gets_its_own_score_in_order() -> None:
    async def main() -> None:
        async with running(FakeBackend(), budget=3) as batcher:
            candidates = [candidate() for _ in range(10)]
            assert await score(batcher, candidates) == [fake_score(one) for one in candidates]

    run(main())


def test_outcomes_carry_their_times_and_their_share_of_the_tokens() -> None:
    async def main() -> None:
        slow, recording = gated()
        clock = Clock()
        async with running(recording, clock=clock) as batcher:
            first = asyncio.create_task(score(batcher, [candidate()]))
            await entered(slow)
            with batcher.admit(2, 60.0) as ticket:
                ticket.put(0, candidate(tokens=30))
                ticket.put(1, candidate(tokens=10))
                clock.now += 2.0
                slow.let_through()
                await entered(slow)
                clock.now += 0.5
                slow.let_through()
                outcomes = await ticket.outcomes()
            await first
            assert [outcome.queue_ms for outcome in outcomes] == [2000.0, 2000.0]
            assert [outcome.inference_ms for outcome in outcomes] == [500.0, 500.0]
            assert [outcome.tokens_computed for outcome in outcomes] == [30, 10]

    run(main())


def test_singles_that_arrive_while_the_device_works_share_a_batch() -> None:
    async def main() -> None:
        slow, recording = gated()
        metrics = Metrics(CollectorRegistry())
        async with running(recording, metrics=metrics) as batcher:
            tasks = [asyncio.create_task(score(batcher, [candidate()])) for _ in range(64)]
            await entered(slow)
            slow.open()
            await asyncio.gather(*tasks)
        counts = Counts(metrics)
        assert counts("jrm_batch_candidates_sum") == 64
        assert counts("jrm_batch_candidates_sum") / counts("jrm_batch_candidates_count") > 8
        assert counts("jrm_batch_tokens_sum") == 64
        assert counts("jrm_queue_wait_seconds_count") == 64
        assert counts.outcomes() == {"ok": 64}

    run(main())


def test_the_next_batch_is_collated_while_the_device_works_once_it_is_full() -> None:
    async def main() -> None:
        slow = SlowBackend(FakeBackend(), gated=True)
        backend = CollateSignal(slow)
        async with running(backend, budget=4) as batcher:
            first = asyncio.create_task(score(batcher, [candidate()]))
            await entered(slow)
            await backend.wait()
            with batcher.admit(5, 60.0) as ticket:
                for index in range(3):
                    ticket.put(index, candidate())
                assert len(backend.collated) == 1  # three of four: whoever comes may still join
                for index in range(3, 5):
                    ticket.put(index, candidate())
                await backend.wait()
                assert [len(batch) for batch in backend.collated] == [1, 4]
                assert len(backend.batches) == 1  # the first is still at the gate
                slow.open()
                await ticket.outcomes()
            await first
        assert [len(batch) for batch in backend.batches] == [1, 4, 1]

    run(main())


def test_a_single_waits_for_one_batch_of_a_large_caller_not_for_all() -> None:
    async def main() -> None:
        slow, recording = gated()
        async with running(recording, budget=10) as batcher:
            thousand = [candidate(source="x") for _ in range(1000)]
            large = asyncio.create_task(score(batcher, thousand))
            await entered(slow)
            single = candidate()
            small = asyncio.create_task(score(batcher, [single]))
            for _ in range(3):  # the running batch, the one collated ahead, its own
                slow.let_through()
                await entered(slow)
            await small
            assert single in recording.batches[2]
            assert not large.done()
            slow.open()
            await large

    run(main())


def test_who_left_while_waiting_never_reaches_the_device() -> None:
    async def main() -> None:
        slow, recording = gated()
        async with running(recording) as batcher:
            first = asyncio.create_task(score(batcher, [candidate()]))
            await entered(slow)
            leaving = [candidate() for _ in range(3)]
            left = asyncio.create_task(score(batcher, leaving))
            stays = candidate()
            second = asyncio.create_task(score(batcher, [stays]))
            await asyncio.sleep(0)
            left.cancel()
            with pytest.raises(asyncio.CancelledError):
                await left
            slow.open()
            await first
            await second
        assert recording.batches[1] == (stays,)
        assert not set(leaving) & set(recording.seen)

    run(main())


def test_who_left_after_the_batch_was_collated_never_reaches_the_device() -> None:
    async def main() -> None:
        slow = SlowBackend(FakeBackend(), gated=True)
        backend = CollateSignal(slow)
        async with running(backend, budget=4) as batcher:
            first = asyncio.create_task(score(batcher, [candidate()]))
            await entered(slow)
            await backend.wait()
            stays = [candidate() for _ in range(2)]
            with batcher.admit(2, 60.0) as leaving, batcher.admit(2, 60.0) as staying:
                for index in range(2):
                    leaving.put(index, candidate())
                    staying.put(index, stays[index])
                await backend.wait()
                leaving.cancel()
                assert not leaving.active
                slow.open()
                await staying.outcomes()
            await first
        assert [set(batch) for batch in backend.batches[1:]] == [set(stays)]
        assert [len(batch) for batch in backend.collated] == [1, 4, 2]

    run(main())


def test_who_ran_out_of_time_after_the_batch_was_collated_never_reaches_the_device() -> None:
    async def main() -> None:
        slow = SlowBackend(FakeBackend(), gated=True)
        backend = CollateSignal(slow)
        clock = Clock()
        async with running(backend, budget=2, clock=clock) as batcher:
            first = asyncio.create_task(score(batcher, [candidate()], timeout_s=1e6))
            await entered(slow)
            await backend.wait()
            stays = candidate()
            with batcher.admit(1, 5000.0) as late, batcher.admit(1, 1e6) as staying:
                late.put(0, candidate())
                staying.put(0, stays)
                await backend.wait()
                assert late.remaining() == 5000.0
                clock.now += 5000.0
                slow.open()
                await staying.outcomes()
                [outcome] = await late.outcomes()
                assert isinstance(outcome.result, DeadlineExceeded)
                assert late.remaining() == 0.0
            await first
        assert recorded(backend) == [1, 1]
        assert backend.batches[1] == (stays,)

    run(main())


def recorded(backend: RecordingBackend) -> list[int]:
    return [len(batch) for batch in backend.batches]


def test_who_left_before_preprocessing_was_done_never_reaches_the_device() -> None:
    async def main() -> None:
        recording = RecordingBackend(FakeBackend())
        async with running(recording) as batcher:
            with batcher.admit(2, 60.0) as ticket:
                assert ticket.active
            ticket.put(0, candidate())
            assert (ticket.active, batcher.depth) == (False, 0)
            await score(batcher, [candidate()])
        assert recorded(recording) == [1]

    run(main())


def test_a_deadline_is_kept_while_the_device_hangs_and_the_late_score_is_dropped() -> None:
    async def main() -> None:
        slow, recording = gated()
        metrics = Metrics(CollectorRegistry())
        async with running(recording, metrics=metrics) as batcher:
            [result] = await score(batcher, [candidate()], timeout_s=0.02)
            assert isinstance(result, DeadlineExceeded)
            assert batcher.depth == 0
            slow.open()
            await score(batcher, [candidate()])
        assert Counts(metrics).outcomes() == {"deadline_exceeded": 1, "ok": 1}

    run(main())


def test_a_candidate_that_is_never_put_ends_at_its_deadline() -> None:
    async def main() -> None:
        async with running(FakeBackend()) as batcher:
            with batcher.admit(2, 0.02) as ticket:
                ticket.put(1, candidate())
                first, second = [outcome.result for outcome in await ticket.outcomes()]
        assert isinstance(first, DeadlineExceeded)
        assert not isinstance(second, DeadlineExceeded)

    run(main())


def test_an_earlier_deadline_admitted_later_fires_first() -> None:
    async def main() -> None:
        slow, recording = gated()
        async with running(recording) as batcher:
            patient = asyncio.create_task(score(batcher, [candidate()]))
            await entered(slow)
            [result] = await score(batcher, [candidate()], timeout_s=0.02)
            assert isinstance(result, DeadlineExceeded)
            assert not patient.done()
            slow.open()
            await patient

    run(main())


def test_a_bad_candidate_fails_alone() -> None:
    async def main() -> None:
        async with running(FakeBackend()) as batcher:
            good = candidate()
            with batcher.admit(2, 60.0) as ticket:
                ticket.fail(0, InvalidImage("edits[0]: truncated PNG"))
                ticket.put(1, good)
                first, second = [outcome.result for outcome in await ticket.outcomes()]
        assert isinstance(first, InvalidImage)
        assert second == fake_score(good)

    run(main())


def test_an_index_outside_of_the_request_is_a_mistake() -> None:
    async def main() -> None:
        async with running(FakeBackend()) as batcher:
            with batcher.admit(2, 60.0) as ticket:
                for index in (-1, 2):
                    with pytest.raises(IndexError):
                        ticket.put(index, candidate())
                    with pytest.raises(IndexError):
                        ticket.fail(index, InvalidImage(""))

    run(main())


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    async def main() -> None:
        slow, recording = gated()
        async with running(recording, max_queue=4) as batcher:
            tasks = [asyncio.create_task(score(batcher, [candidate(), candidate()])) for _ in range(2)]
            await entered(slow)
            with pytest.raises(Overloaded) as refused:
                batcher.admit(1, 60.0)
            assert refused.value.retry_after is not None
            assert refused.value.retry_after > 0
            assert batcher.depth == 4
            slow.open()
            await asyncio.gather(*tasks)
            assert batcher.depth == 0
            await score(batcher, [candidate() for _ in range(4)])

    run(main())


def test_draining_finishes_what_is_admitted_and_admits_nothing_more() -> None:
    async def main() -> None:
        slow, recording = gated()
        async with running(recording) as batcher:
            batcher.check_ready()
            with batcher.admit(2, 60.0) as ticket:
                ticket.put(0, candidate())
                await entered(slow)
                drained = asyncio.create_task(batcher.drain())
                await asyncio.sleep(0)
                with pytest.raises(Draining):
                    batcher.admit(1, 60.0)
                with pytest.raises(Draining):
                    batcher.check_ready()
                ticket.put(1, candidate())
                assert not drained.done()
                slow.open()
                outcomes = await ticket.outcomes()
                await drained
            assert [outcome.label for outcome in outcomes] == ["ok", "ok"]

    run(main())


def test_an_empty_batcher_drains_at_once() -> None:
    async def main() -> None:
        async with running(FakeBackend()) as batcher:
            await batcher.drain()

    run(main())


def test_before_it_is_started_nobody_is_admitted() -> None:
    async def main() -> None:
        metrics = Metrics(CollectorRegistry())
        batcher = Batcher([FakeBackend()], max_batch_tokens=1, max_queue=1, hang_timeout_s=1.0, metrics=metrics)
        with pytest.raises(NotReady):
            batcher.admit(1, 60.0)
        await batcher.start()
        with pytest.raises(RuntimeError, match="started once"):
            await batcher.start()
        await batcher.stop()

    run(main())


def test_stopping_ends_what_is_unfinished_and_the_threads() -> None:
    before = set(threading.enumerate())

    async def main() -> None:
        slow, recording = gated()
        async with running(recording, budget=1) as batcher:
            tasks = [asyncio.create_task(score(batcher, [candidate()])) for _ in range(4)]
            await entered(slow)
            slow.open()
            await tasks[0]
            waiting = batcher.admit(1, 60.0)
        [outcome] = await waiting.outcomes()
        assert isinstance(outcome.result, InternalError)
        assert str(outcome.result) == "the server stopped"
        assert [status.state for status in batcher.workers] == [State.LOST]
        await asyncio.gather(*tasks)

    run(main())
    assert set(threading.enumerate()) <= before


def test_group_completion_is_measured_from_first_in_to_last_out() -> None:
    async def main() -> None:
        slow, recording = gated()
        clock = Clock()
        metrics = Metrics(CollectorRegistry())
        async with running(recording, clock=clock, metrics=metrics) as batcher:
            with batcher.admit(4, 600.0, groups=[2, 1, 1]) as ticket:
                clock.now += 100.0  # preprocessing does not count
                ticket.put(0, candidate())
                await entered(slow)
                clock.now += 2.0
                ticket.put(1, candidate())
                ticket.put(2, candidate())
                ticket.put(3, candidate())
                ticket.fail(3, InvalidImage("a group without any score"))
                clock.now += 1.0
                slow.let_through()
                await entered(slow)
                clock.now += 1.0
                slow.let_through()
                await ticket.outcomes()
        counts = Counts(metrics)
        assert counts("jrm_group_completion_seconds_count") == 2
        assert counts("jrm_group_completion_seconds_sum") == (2.0 + 1.0 + 1.0) + (1.0 + 1.0)

    run(main())


def test_groups_that_do_not_add_up_are_a_mistake() -> None:
    async def main() -> None:
        async with running(FakeBackend()) as batcher:
            with pytest.raises(ValueError, match="groups of 3 candidates"):
                batcher.admit(4, 60.0, groups=[2, 1])

    run(main())
