"""Random schedules of arrivals, deadlines, disconnects and faults, on a clock by hand.

Whatever happens, every entry ends in exactly one score or error, no worker is handed what nobody waits for or what
another one has, and the queue keeps nothing of what has ended.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jrm_service.errors import CandidateError, DeadlineExceeded, DeviceLost, InternalError, NonFiniteScore
from jrm_service.scoring.backend import BatchResult
from jrm_service.scoring.outcomes import Cancelled
from jrm_service.scoring.queue import MOST_TRIES, ScoreQueue, Task
from jrm_service.scoring.request import Entry, Request
from jrm_service.scoring.types import Candidate, Dimension, Score
from service.scoring.support import candidate, request_of, run_virtual

WORKERS = (0, 1, 2)
BUDGET = 8


def score(mean: float) -> Score:
    return Score(mean, None, {"visual_quality": Dimension(mean, None)})


ANSWERS: dict[str, Score | CandidateError] = {
    "ok": score(0.5),
    "nan": score(math.nan),
    "error": InternalError("by itself"),
}


class Schedule:
    """Plays callers and workers against one queue, at random, and checks every step.

    With ``distinct``, that many candidates are all that there are: most entries have others like them.
    """

    def __init__(self, random: Random, distinct: int | None) -> None:
        self.random = random
        self.now = 0.0
        self.queue = ScoreQueue(max_batch_tokens=BUDGET, on_score=lambda scored, _score: self.told.append(scored))
        self.requests: list[Request] = []
        self.unput: list[Entry] = []
        self.ends: Counter[Entry] = Counter()
        self.under_way: dict[int, list[list[Task]]] = {worker: [] for worker in WORKERS}
        self.tries: Counter[int] = Counter()  # by task
        self.tasks: list[Task] = []  # kept, so that no id is used twice
        self.told: list[Candidate] = []
        self.scored = 0
        self.pool = [self.new_candidate() for _ in range(distinct)] if distinct else []

    async def play(self, steps: int) -> None:
        moves = {
            self.arrive: 4,
            self.put: 5,
            self.disconnect: 1,
            self.time_passes: 2,
            self.take: 4,
            self.answer: 4,
            self.lose_worker: 2,
        }
        for move in self.random.choices(list(moves), weights=list(moves.values()), k=steps):
            move()
            if self.random.random() < 0.7:  # callbacks of futures may be late
                await asyncio.sleep(0)
            self.check()
        await self.finish()

    # --- callers ---

    def arrive(self) -> None:
        candidates = [self.some_candidate() for _ in range(self.random.randint(1, 12))]
        request = request_of(candidates, tenant=self.random.choice("ab"))
        request.deadline = self.now + self.random.choice([0.0, 5.0, 50.0, 500.0])
        self.requests.append(request)
        for entry in request.entries:
            entry.future.add_done_callback(lambda _future, entry=entry: self.ended(entry))
        self.unput += request.entries

    def put(self) -> None:
        self.random.shuffle(self.unput)
        for _ in range(self.random.randint(0, len(self.unput))):
            self.queue.put(self.unput.pop(), self.now)

    def ended(self, entry: Entry) -> None:
        self.ends[entry] += 1
        self.queue.drop(entry)
        assert entry.prepared is None

    def disconnect(self) -> None:
        if self.requests:
            self.random.choice(self.requests).cancel()

    def time_passes(self) -> None:
        self.now += self.random.uniform(0.0, 4.0)
        for request in self.requests:
            if request.deadline <= self.now:
                request.expire()

    def new_candidate(self) -> Candidate:
        return candidate(self.random.randint(1, 4), self.random.choice([None, "x", "y"]))

    def some_candidate(self) -> Candidate:
        return self.random.choice(self.pool) if self.pool else self.new_candidate()

    # --- workers ---

    def take(self) -> None:
        for batches in self.under_way.values():
            if len(batches) < 2:
                self.receive(batches)

    def receive(self, batches: list[list[Task]]) -> None:
        batch = self.queue.take(only_full=bool(batches))
        elsewhere = {id(task) for other in self.under_way.values() for held in other for task in held}
        for task in batch:
            assert task.wanted
            assert id(task) not in elsewhere
            assert self.tries[id(task)] == task.lost_with < MOST_TRIES
        assert len({task.lost_with for task in batch}) <= 1
        assert len(batch) <= 1 or sum(task.candidate.tokens for task in batch) <= BUDGET
        wanted = [task.candidate for other in self.under_way.values() for held in other for task in held if task.wanted]
        assert not {id(one) for one in wanted} & {id(task.candidate) for task in batch}
        self.tasks += batch
        if batch:
            batches.append(batch)

    def answer(self, *, perfect: bool = False) -> None:
        """Every busy worker answers: a score, a NaN or an error for each candidate, or one outcome too few."""
        for batches in self.under_way.values():
            if not batches:
                continue
            batch = batches.pop(0)
            self.queue.start(batch, self.now)
            fates = self.random.choices(list(ANSWERS), weights=[1, 0, 0] if perfect else [6, 1, 1], k=len(batch))
            if not perfect and self.random.random() < 0.1:
                fates = fates[1:]
            else:
                self.scored += fates.count("ok")
            self.queue.settle(batch, BatchResult([ANSWERS[fate] for fate in fates], 10 * len(batch)), 0.125, self.now)

    def lose_worker(self) -> None:
        batches = self.under_way[self.random.choice(WORKERS)]
        begun, ahead = batches[:1], batches[1:]
        batches.clear()
        for batch in ahead:
            self.queue.give_back(batch)
        for batch in begun:
            self.queue.start(batch, self.now)
            self.tries.update(id(task) for task in batch)
            self.queue.worker_lost(batch, "the worker died", self.now)
            ended = [task for task in batch if self.tries[id(task)] == MOST_TRIES]
            assert not any(task.wanted for task in ended)

    # --- always, and in the end ---

    def check(self) -> None:
        assert all(count == 1 for count in self.ends.values())
        assert len(self.told) == self.scored

    async def finish(self) -> None:
        """Working devices are enough for everybody who waits."""
        for entry in self.unput:
            self.queue.put(entry, self.now)
        await asyncio.sleep(0)
        while True:
            self.take()
            if not any(self.under_way.values()):
                break
            self.answer(perfect=True)
            await asyncio.sleep(0)
        entries = [entry for request in self.requests for entry in request.entries]
        assert all(self.ends[entry] == 1 for entry in entries)
        for entry in entries:
            outcome = entry.future.result()
            kinds = (Score, Cancelled, DeadlineExceeded, DeviceLost, InternalError, NonFiniteScore)
            assert isinstance(outcome.result, kinds)
            assert not isinstance(outcome.result, Score) or outcome.result.finite
            assert outcome.queue_ms >= 0.0
        queue = self.queue
        assert (len(queue._planner), queue._waiting, queue._working, list(queue._again)) == (0, {}, {}, [])


@pytest.mark.parametrize("distinct", [None, 9], ids=["all different", "few different"])
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_every_candidate_ends_in_exactly_one_score_or_error(distinct: int | None, seed: int) -> None:
    run_virtual(Schedule(Random(seed), distinct).play(steps=250))
