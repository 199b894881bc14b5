"""Workers that let go of their devices for a while: what is under way ends, what waits goes on waiting."""

from __future__ import annotations

import asyncio

import pytest

from jrm_service.scoring.backend import StartFailed
from jrm_service.scoring.fakes import fake_score
from jrm_service.scoring.worker_slot import State
from service.scoring.support import LoopWorker, candidate, now, run_virtual, running, score


def test_what_is_on_a_device_ends_and_what_waits_is_scored_after_the_wake() -> None:
    async def main() -> None:
        worker = LoopWorker(seconds=2.0)
        async with running(worker, budget=1) as batcher:
            candidates = [candidate() for _ in range(4)]
            scores = asyncio.create_task(score(batcher, candidates))
            await asyncio.sleep(0.5)  # one is on the device, one was sent ahead
            await batcher.sleep("host")
            assert (len(worker.batches), worker.naps, batcher.states) == (2, ["sleep"], [State.ASLEEP])
            await asyncio.sleep(100.0)
            assert len(worker.batches) == 2
            await batcher.wake()
            assert await scores == [fake_score(one) for one in candidates]
            assert (worker.naps, worker.starts, worker.ends) == (["sleep", "wake"], 1, 0)

    run_virtual(main())


def test_dropped_weights_are_loaded_again() -> None:
    async def main() -> None:
        worker = LoopWorker()
        async with running(worker) as batcher:
            await batcher.sleep("drop")
            assert (worker.ends, worker.naps, batcher.alive) == (1, [], 0)
            batcher.check_ready()  # it can be waited for
            await batcher.wake()
            assert worker.starts == 2
            one = candidate()
            assert await score(batcher, [one]) == [fake_score(one)]

    run_virtual(main())


def test_a_second_sleep_drops_what_the_first_one_kept() -> None:
    async def main() -> None:
        worker = LoopWorker()
        async with running(worker) as batcher:
            await batcher.sleep("host")
            await batcher.sleep("host")
            assert (worker.naps, worker.ends) == (["sleep"], 0)
            await batcher.sleep("drop")
            await batcher.sleep("host")
            assert (worker.naps, worker.ends) == (["sleep"], 1)
            await batcher.wake()
            assert (worker.naps, worker.starts) == (["sleep"], 2)

    run_virtual(main())


def test_a_worker_that_dies_in_its_sleep_is_started_when_it_is_woken() -> None:
    async def main() -> None:
        worker = LoopWorker()
        async with running(worker) as batcher:
            await batcher.sleep("host")
            worker.die()
            await asyncio.sleep(1000.0)
            assert worker.starts == 1
            await batcher.wake()
            assert worker.starts == 2
            one = candidate()
            assert await score(batcher, [one]) == [fake_score(one)]

    run_virtual(main())


def test_one_that_is_lost_on_the_way_to_sleep_does_not_take_its_batch_along() -> None:
    async def main() -> None:
        worker = LoopWorker(seconds=2.0, kills=lambda one: one.instruction == "kill")
        async with running(worker, budget=1) as batcher:
            candidates = [candidate(instruction="kill"), candidate()]
            scores = asyncio.create_task(score(batcher, candidates))
            await asyncio.sleep(0.5)
            await batcher.sleep("host")
            assert (batcher.states, worker.starts) == ([State.ASLEEP], 1)
            await batcher.wake()
            killed, other = await scores
            assert other == fake_score(candidates[1])
            assert getattr(killed, "code", None) == "device_lost"

    run_virtual(main())


def test_a_hung_batch_is_waited_for_as_long_as_any() -> None:
    async def main() -> None:
        worker = LoopWorker(hangs=lambda one: one.instruction == "hang")
        async with running(worker, budget=1, hang_timeout_s=10.0) as batcher:
            scores = asyncio.create_task(score(batcher, [candidate(instruction="hang")]))
            await asyncio.sleep(1.0)
            began = now()
            await batcher.sleep("host")
            assert now() - began == 9.0
            assert batcher.states == [State.ASLEEP]
            scores.cancel()
            await asyncio.gather(scores, return_exceptions=True)

    run_virtual(main())


def test_a_wake_without_room_leaves_all_asleep_and_can_be_tried_again() -> None:
    async def main() -> None:
        workers = [LoopWorker(), LoopWorker(failing_starts=1)]
        async with running(*workers) as batcher:
            waiting = [candidate()]
            await batcher.sleep("drop")
            scores = asyncio.create_task(score(batcher, waiting))
            with pytest.raises(StartFailed):
                await batcher.wake()
            assert batcher.states == [State.ASLEEP, State.ASLEEP]
            await asyncio.sleep(10.0)
            assert not scores.done()
            await batcher.wake()
            assert await scores == [fake_score(waiting[0])]

    run_virtual(main())


def test_a_worker_that_is_starting_again_is_ended() -> None:
    async def main() -> None:
        worker = LoopWorker(failing_starts=3)
        async with running(worker) as batcher:
            worker.die()
            await asyncio.sleep(0.5)
            assert batcher.states == [State.STARTING]
            await batcher.sleep("host")
            started = worker.starts
            await asyncio.sleep(100.0)
            assert (worker.starts, batcher.states, worker.naps) == (started, [State.ASLEEP], [])

    run_virtual(main())


def test_the_server_may_stop_meanwhile() -> None:
    async def main() -> None:
        worker = LoopWorker()
        async with running(worker) as batcher:
            await batcher.sleep("host")
            await batcher.stop()
            assert (batcher.states, worker.ends) == ([State.FAILED], 1)

    run_virtual(main())
