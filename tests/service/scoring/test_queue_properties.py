"""Random schedules of arrivals, deadlines, disconnects and faults, on a clock by hand.

Whatever happens, every admitted candidate ends in exactly one score or error, and no worker is handed one that has
ended, that another worker has, or that was lost with it before.
"""

from __future__ import annotations

import math
from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jrm_service.errors import CandidateError, InternalError, InvalidImage, NotReady, Overloaded
from jrm_service.scoring.backend import Scored
from jrm_service.scoring.outcomes import Outcome
from jrm_service.scoring.queue import Admission, Entry, ScoreQueue
from jrm_service.scoring.types import Dimension, Score
from service.scoring.support import candidate

WORKERS = (0, 1, 2)
MAX_QUEUE = 40
BUDGET = 8


def score(mean: float) -> Score:
    return Score(mean, None, {"visual_quality": Dimension(mean, None)})


ANSWERS: dict[str, Score | CandidateError] = {
    "ok": score(0.5),
    "nan": score(math.nan),
    "error": InternalError("by itself"),
}


class Schedule:
    """Plays callers and devices against one queue, at random, and checks every step."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.now = 0.0
        self.queue = ScoreQueue(max_batch_tokens=BUDGET, max_queue=MAX_QUEUE)
        self.alive: set[int] = set()
        self.admitted: list[Admission] = []
        self.ends: Counter[tuple[int, int]] = Counter()
        self.held: dict[int, list[Entry]] = {worker: [] for worker in WORKERS}
        self.ahead: dict[int, list[Entry]] = {worker: [] for worker in WORKERS}
        self.lost_with: dict[Entry, list[int]] = {}

    def play(self, steps: int) -> None:
        moves = {
            self.admit: 4,
            self.put: 5,
            self.fail: 1,
            self.disconnect: 1,
            self.time_passes: 2,
            self.take: 4,
            self.answer: 4,
            self.raise_: 1,
            self.lose_worker: 2,
            self.worker_comes_up: 3,
        }
        for move in self.random.choices(list(moves), weights=list(moves.values()), k=steps):
            move()
            self.check()
        self.finish()

    # --- callers ---

    def admit(self) -> None:
        count = self.random.randint(1, 12)
        timeout = self.random.choice([0.0, 5.0, 50.0, 500.0])
        number = len(self.admitted)

        def heard(index: int, outcome: Outcome, now: float) -> None:
            assert isinstance(outcome.result, Score | CandidateError)
            assert not isinstance(outcome.result, Score) or outcome.result.finite
            assert now == self.now
            assert outcome.queue_ms >= 0.0
            self.ends[number, index] += 1

        if not self.alive:
            with pytest.raises(NotReady):
                self.queue.admit(count, self.now, self.now + timeout)
            return
        try:
            self.admitted.append(self.queue.admit(count, self.now, self.now + timeout, heard))
        except Overloaded as error:
            refused = error
        else:
            return
        assert self.queue.unfinished + count > MAX_QUEUE
        assert refused.retry_after is not None
        assert 0.0 < refused.retry_after <= 60.0

    def put(self) -> None:
        admission = self.some_admission()
        source = self.random.choice([None, "x", "y"])
        for index in range(len(admission.outcomes)):
            if index not in admission.entries and self.random.random() < 0.8:
                self.queue.put(admission, index, candidate(self.random.randint(1, 4), source), self.now)

    def fail(self) -> None:
        admission = self.some_admission()
        if admission.outcomes:
            index = self.random.randrange(len(admission.outcomes))
            self.queue.fail(admission, index, InvalidImage("truncated"), self.now)

    def disconnect(self) -> None:
        admission = self.some_admission()
        self.queue.cancel(admission, self.now)
        assert admission.unfinished == 0

    def time_passes(self) -> None:
        self.now += self.random.uniform(0.0, 4.0)
        if self.random.random() < 0.5:
            self.queue.expire(self.now)
            assert all(admission.deadline > self.now for admission in self.admitted if admission.unfinished)

    def some_admission(self) -> Admission:
        unfinished = [admission for admission in self.admitted if admission.unfinished]
        chosen = unfinished if self.random.random() < 0.9 else self.admitted
        return self.random.choice(chosen or [Admission(-1, 0, 0.0, lambda index, outcome, now: None)])

    # --- workers ---

    def take(self) -> None:
        for worker in self.alive:
            if not self.held[worker]:
                self.held[worker], self.ahead[worker] = self.ahead[worker], []
                self.held[worker] = self.held[worker] or self.receive(worker, only_full=False)
            elif not self.ahead[worker]:
                self.ahead[worker] = self.receive(worker, only_full=True)

    def receive(self, worker: int, *, only_full: bool) -> list[Entry]:
        entries = self.queue.take(worker, self.now, only_full=only_full)
        elsewhere = {entry for lists in (self.held, self.ahead) for held in lists.values() for entry in held}
        for entry in entries:
            assert not entry.finished
            assert entry.admission.deadline > self.now
            assert entry not in elsewhere
            assert worker not in self.lost_with.get(entry, [])
        assert len(entries) <= 1 or sum(entry.candidate.tokens for entry in entries) <= BUDGET
        return entries

    def start(self, worker: int) -> list[Entry]:
        live = self.queue.live(self.held[worker], self.now)
        assert all(entry.admission.deadline > self.now and not entry.finished for entry in live)
        self.queue.start(live, self.now)
        return live

    def answer(self, *, perfect: bool = False) -> None:
        """Every busy device answers: a score, a NaN or an error for each candidate, or one outcome too few."""
        for worker in self.alive:
            live = self.start(worker)
            self.held[worker] = []
            fates = self.random.choices(list(ANSWERS), weights=[1, 0, 0] if perfect else [6, 1, 1], k=len(live))
            if not perfect and self.random.random() < 0.1:
                fates = fates[1:]
            self.queue.settle(live, Scored([ANSWERS[fate] for fate in fates], 10 * len(live)), 0.125, self.now)

    def raise_(self) -> None:
        for worker in self.alive:
            live = self.start(worker)
            self.held[worker] = []
            self.queue.settle_error(live, InternalError("the backend raised"), 0.125, self.now)

    def lose_worker(self) -> None:
        worker = self.random.choice(WORKERS)
        if worker not in self.alive:
            return
        for entry in self.start(worker):
            self.lost_with.setdefault(entry, []).append(worker)
        held, self.held[worker] = self.held[worker], []
        ahead, self.ahead[worker] = self.ahead[worker], []
        self.alive.discard(worker)
        self.queue.worker_lost(worker, held, ahead, f"the worker on cpu:{worker} died", self.now)
        for entry in held:
            assert entry.finished or (len(self.lost_with[entry]) == 1 and self.alive)
        if not self.alive:
            assert not any(admission.entries for admission in self.admitted)

    def worker_comes_up(self) -> None:
        worker = self.random.choice(WORKERS)
        self.alive.add(worker)
        self.queue.worker_up(worker)

    # --- always, and in the end ---

    def check(self) -> None:
        assert all(count == 1 for count in self.ends.values())
        unfinished = sum(admission.unfinished for admission in self.admitted)
        assert self.queue.unfinished == unfinished <= MAX_QUEUE
        assert len(self.ends) + unfinished == sum(len(admission.outcomes) for admission in self.admitted)
        deadlines = [admission.deadline for admission in self.admitted if admission.unfinished]
        assert not deadlines or (self.queue.next_deadline is not None and self.queue.next_deadline <= min(deadlines))

    def finish(self) -> None:
        """Working devices are enough for everyone who waits; deadlines end the rest."""
        for worker in WORKERS:
            self.alive.add(worker)
            self.queue.worker_up(worker)
        for _ in range(2 * MAX_QUEUE):
            self.take()
            self.answer(perfect=True)
        assert not any(admission.entries for admission in self.admitted)
        self.now += 1000.0
        self.queue.expire(self.now)
        assert self.queue.unfinished == 0
        for number, admission in enumerate(self.admitted):
            assert all(self.ends[number, index] == 1 for index in range(len(admission.outcomes)))


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_every_admitted_candidate_ends_in_exactly_one_score_or_error(seed: int) -> None:
    Schedule(Random(seed)).play(steps=250)
