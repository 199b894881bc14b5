"""The running batcher under random callers and random faults: every admitted candidate ends exactly once."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from jrm_service.errors import (
    CandidateError,
    DeadlineExceeded,
    InternalError,
    InvalidImage,
    NonFiniteScore,
    NotReady,
    NoWorker,
    Overloaded,
)
from jrm_service.metrics import Metrics
from jrm_service.scoring.backend import WorkerLost
from jrm_service.scoring.batcher import Batcher
from jrm_service.scoring.fakes import FakeBackend, FakeLike, NaNBackend, RaisingBackend, RecordingBackend, fake_score
from jrm_service.scoring.types import Candidate
from service.scoring.support import Counts, candidate, run, running

WORKERS = 3
WHAT_MAY_COME_OF = {
    "fine": (),
    "nan": (NonFiniteScore,),
    "raise": (InternalError,),
    "kill": (InternalError,),
    "bad image": (InvalidImage,),
}


def fate(name: str) -> Any:
    return lambda one: one.instruction == name


def backend() -> RecordingBackend:
    made: FakeLike = NaNBackend(FakeBackend(), when=fate("nan"))
    made = RaisingBackend(made, when=fate("raise"))
    made = RaisingBackend(made, when=fate("kill"), error=lambda: WorkerLost("gone"))
    return RecordingBackend(made)


class Caller:
    """One request whose candidates have fates of their own; it may lack patience or leave."""

    def __init__(self, random: Random) -> None:
        weights = [30, 3, 3, random.choice([0, 0, 1]), 3]
        self.fates = random.choices(list(WHAT_MAY_COME_OF), weights=weights, k=random.randint(1, 9))
        self.candidates = [candidate(random.randint(1, 3), random.choice([None, "x"]), name) for name in self.fates]
        self.timeout_s = random.choice([0.0, 0.001, 60.0, 60.0, 60.0])
        self.leaves_after = random.choice([None, None, 0, 1, 3])
        self.pauses = [random.random() < 0.3 for _ in self.fates]
        self.left: list[Candidate] = []
        self.admitted = 0

    async def call(self, batcher: Batcher) -> None:
        try:
            ticket = batcher.admit(len(self.candidates), self.timeout_s)
        except (Overloaded, NotReady):
            return
        self.admitted = len(self.candidates)
        with ticket:
            for index, one in enumerate(self.candidates):
                if index == self.leaves_after:
                    break
                if one.instruction == "bad image":
                    ticket.fail(index, InvalidImage("truncated"))
                else:
                    ticket.put(index, one)
                if self.pauses[index]:
                    await asyncio.sleep(0)
            else:
                outcomes = await ticket.outcomes()
                assert len(outcomes) == len(self.candidates)
                for one, outcome in zip(self.candidates, outcomes, strict=True):
                    self.check(one, outcome.result)
                return
        self.left = self.candidates[self.leaves_after :]

    def check(self, one: Candidate, result: object) -> None:
        """Its own score, or the error that it deserves, or one that anybody may get."""
        if isinstance(result, CandidateError):
            may_be = (*WHAT_MAY_COME_OF[one.instruction], DeadlineExceeded)
            bystander = type(result) is NoWorker or (type(result) is InternalError and "worker" in str(result))
            assert bystander or isinstance(result, may_be), (one.instruction, result)
        else:
            assert one.instruction == "fine"
            assert result == fake_score(one)


async def play(random: Random) -> None:
    metrics = Metrics(CollectorRegistry())
    backends = [backend() for _ in range(WORKERS)]
    callers = [Caller(random) for _ in range(random.randint(1, 25))]
    async with running(*backends, budget=random.randint(1, 12), max_queue=60, metrics=metrics) as batcher:
        await asyncio.gather(*(caller.call(batcher) for caller in callers))
        await batcher.drain()
        assert batcher.depth == 0
    assert sum(Counts(metrics).outcomes().values()) == sum(caller.admitted for caller in callers)
    seen = [one for each in backends for one in each.seen]
    assert not {id(one) for one in seen} & {id(one) for caller in callers for one in caller.left}
    assert not any(fate("kill")(one) for each in backends for batch in each.batches[:-1] for one in batch)
    killers = Counter(id(one) for one in seen if one.instruction == "kill")
    assert all(runs <= 2 for runs in killers.values())


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_every_admitted_candidate_ends_in_its_own_score_or_a_typed_error(seed: int) -> None:
    before = set(threading.enumerate())
    run(play(Random(seed)))
    assert set(threading.enumerate()) <= before
