"""The running batcher under random callers, faults and naps, on a virtual clock: every candidate ends exactly once."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from random import Random
from typing import Any, get_args

from hypothesis import given, settings
from hypothesis import strategies as st

from jrm_service.errors import CandidateError, DeadlineExceeded, DeviceLost, InternalError, NonFiniteScore
from jrm_service.scoring.backend import SleepLevel, StartFailed
from jrm_service.scoring.batcher import Batcher
from jrm_service.scoring.fakes import FakeBackend, NaNBackend, RaisingBackend, fake_score
from jrm_service.scoring.queue import MOST_TRIES
from jrm_service.scoring.request import Entry
from jrm_service.scoring.types import Candidate
from jrm_service.scoring.worker_slot import State
from service.scoring.support import LoopWorker, candidate, now, request_of, run_virtual, running

LEVELS = get_args(SleepLevel)
WHAT_MAY_COME_OF: dict[str, tuple[type[CandidateError], ...]] = {
    "fine": (),
    "nan": (NonFiniteScore,),
    "raise": (InternalError,),
    "kill": (DeviceLost,),
    "hang": (DeviceLost,),
}


def fate(name: str) -> Any:
    return lambda candidate: candidate.instruction == name


def worker(random: Random) -> LoopWorker:
    backend = RaisingBackend(NaNBackend(FakeBackend(), when=fate("nan")), when=fate("raise"))
    return LoopWorker(
        backend,
        seconds=random.choice([0.1, 1.0, 3.0]),
        kills=fate("kill"),
        hangs=fate("hang"),
        failing_starts=random.choice([0, 0, 2, 4]),
    )


class Caller:
    """One request whose candidates have fates of their own; it may lack patience or leave."""

    def __init__(self, random: Random, pool: list[Candidate]) -> None:
        weights = [30, 3, 3, *random.choice([(0, 0), (0, 0), (1, 1)])]
        self.candidates = [
            random.choice(pool)
            if pool and random.random() < 0.3
            else candidate(random.randint(1, 3), random.choice([None, "x"]), name)
            for name in random.choices(list(WHAT_MAY_COME_OF), weights=weights, k=random.randint(1, 9))
        ]
        self.tenant = random.choice("ab")
        self.timeout_s = random.choice([0.0, 0.5, 5.0, 10_000.0, 10_000.0])
        self.arrives_at = random.uniform(0.0, 10.0)
        self.leaves_after = random.choice([None, None, None, 0.0, 1.0, 5.0])
        self.entries: list[Entry] = []

    async def call(self, batcher: Batcher) -> None:
        await asyncio.sleep(self.arrives_at)
        request = request_of(self.candidates, self.timeout_s, self.tenant)
        self.entries = request.entries
        deadline = now() + self.timeout_s
        try:
            async with asyncio.timeout(self.leaves_after):
                for entry in request.entries:
                    batcher.put(entry)
                outcomes = await request.outcomes()
        except TimeoutError:
            request.cancel()
            return
        assert now() <= deadline
        for scored, outcome in zip(self.candidates, outcomes, strict=True):
            result = outcome.result
            if isinstance(result, CandidateError):
                assert isinstance(result, (*WHAT_MAY_COME_OF[scored.instruction], DeadlineExceeded)), scored.instruction
            else:
                assert scored.instruction == "fine"
                assert result == fake_score(scored)


async def operate(random: Random, batcher: Batcher) -> None:
    """Put the batcher to sleep a few times, at any moment, and wake it as soon as that works."""
    for _ in range(random.choice([0, 0, 1, 3])):
        await asyncio.sleep(random.uniform(0.0, 8.0))
        for level in random.choices(LEVELS, k=random.choice([1, 1, 2])):
            await batcher.sleep(level)
            assert set(batcher.states) == {State.ASLEEP}
            assert not any(slot.in_flight for slot in batcher._slots)
        await asyncio.sleep(random.choice([0.0, 2.0, 20.0]))
        while batcher.alive < len(batcher.states):
            with suppress(StartFailed):
                await batcher.wake()


async def play(random: Random) -> None:
    workers = [worker(random) for _ in range(random.randint(1, 3))]
    pool = [candidate(random.randint(1, 3), "x", "fine") for _ in range(3)]
    callers = [Caller(random, pool) for _ in range(random.randint(1, 15))]
    failed: list[BaseException] = []
    async with running(*workers, budget=random.randint(1, 12), hang_timeout_s=10.0, on_failed=failed.append) as batcher:
        await asyncio.gather(*(caller.call(batcher) for caller in callers), operate(random, batcher))
        await asyncio.sleep(0)
        entries = [entry for caller in callers for entry in caller.entries]
        assert all(entry.future.done() and entry.prepared is None for entry in entries)
        await asyncio.sleep(1_000.0)  # what was on a device when its last caller left comes to its end
        queue = batcher._queue
        assert (len(queue._planner), queue._waiting, queue._working, list(queue._again)) == (0, {}, {}, [])
        assert not failed
        assert batcher.alive == len(workers)
        assert not any(slot.in_flight for slot in batcher._slots)
    runs = Counter(id(seen) for each in workers for seen in each.seen if seen.instruction in ("kill", "hang"))
    assert all(count <= MOST_TRIES for count in runs.values())


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_every_candidate_ends_in_its_own_score_or_a_typed_error(seed: int) -> None:
    run_virtual(play(Random(seed)))
