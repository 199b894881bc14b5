"""Identical candidates in the queue: computed once, and nobody loses by it."""

from __future__ import annotations

from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from jrm_service.errors import DeadlineExceeded, InternalError, NoWorker
from jrm_service.scoring.backend import Scored
from jrm_service.scoring.outcomes import Cancelled
from jrm_service.scoring.queue import Admission, Entry, ScoreQueue
from jrm_service.scoring.types import Candidate, Dimension, Score
from service.scoring.support import candidate
from service.scoring.test_queue_properties import Schedule

GOOD = Score(0.5, None, {"visual_quality": Dimension(0.5, None)})


def queue(*workers: int, budget: int = 10, **options: Any) -> ScoreQueue:
    made = ScoreQueue(max_batch_tokens=budget, max_queue=100, **options)
    for worker in workers or (0,):
        made.worker_up(worker)
    return made


def put(made: ScoreQueue, *candidates: Candidate, now: float = 0.0, deadline: float = 60.0) -> Admission:
    admission = made.admit(len(candidates), now, deadline)
    for index, one in enumerate(candidates):
        made.put(admission, index, one, now)
    return admission


def settle(made: ScoreQueue, batch: list[Entry], now: float, tokens: int = 0) -> None:
    made.settle(batch, Scored([GOOD] * len(batch), tokens), seconds=0.25, now=now)


def results(*admissions: Admission) -> list[Any]:
    return [outcome and outcome.result for admission in admissions for outcome in admission.outcomes]


def test_identical_candidates_of_one_request_are_one_in_the_batch() -> None:
    made = queue()
    one, other = candidate(), candidate()
    admission = put(made, one, other, one, one)
    batch = made.take(0, 0.0)
    assert [entry.index for entry in batch] == [0, 1]
    made.start(batch, 1.0)
    settle(made, batch, 2.0, tokens=10)
    assert results(admission) == [GOOD] * 4
    ends = [outcome for outcome in admission.outcomes if outcome]
    assert [outcome.origin for outcome in ends] == ["computed", "computed", "shared", "shared"]
    assert [outcome.tokens_computed for outcome in ends] == [5, 5, 0, 0]
    assert {(outcome.queue_ms, outcome.inference_ms) for outcome in ends} == {(1000.0, 250.0)}


def test_one_that_comes_while_its_twin_is_on_a_device_gets_that_score() -> None:
    made = queue(0, 1)
    one = candidate()
    first = put(made, one)
    batch = made.take(0, 0.0)
    made.start(batch, 0.0)
    second = put(made, one, now=1.0)
    assert made.take(1, 1.0) == []
    settle(made, batch, 2.0)
    assert results(first, second) == [GOOD, GOOD]
    assert second.outcomes[0] is not None
    assert second.outcomes[0].queue_ms == 0.0


def test_twins_differ_in_nothing() -> None:
    made = queue()
    one = candidate(source="s", instruction="a")
    other_text = Candidate(one.source, one.edited, "b", one.sequences)
    swapped = Candidate(one.edited, one.source, "a", one.sequences)
    put(made, one, other_text, swapped)
    assert len(made.take(0, 0.0)) == 3


def test_a_caller_who_leaves_the_line_takes_nothing_from_the_other() -> None:
    made = queue()
    one = candidate()
    leaving, staying = put(made, one), put(made, one)
    made.cancel(leaving, 0.0)
    batch = made.take(0, 0.0)
    settle(made, batch, 1.0)
    assert results(staying) == [GOOD]


def test_a_caller_who_leaves_the_device_takes_nothing_from_the_other() -> None:
    made = queue()
    one = candidate()
    leaving, staying = put(made, one), put(made, one)
    batch = made.take(0, 0.0)
    made.cancel(leaving, 0.0)
    assert made.live(batch, 0.0) == batch
    settle(made, batch, 1.0)
    assert isinstance(results(leaving)[0], Cancelled)
    assert results(staying) == [GOOD]


def test_every_caller_keeps_its_own_deadline() -> None:
    made = queue()
    one = candidate()
    lead = put(made, one, deadline=5.0)
    short = put(made, one, deadline=2.0)
    long = put(made, one, deadline=60.0)
    batch = made.take(0, 0.0)
    made.start(batch, 0.0)
    made.expire(2.0)
    assert isinstance(results(short)[0], DeadlineExceeded)
    assert results(lead) == [None]
    made.expire(5.0)
    assert isinstance(results(lead)[0], DeadlineExceeded)
    assert made.live(batch, 5.0) == batch
    settle(made, batch, 6.0)
    assert results(long) == [GOOD]
    assert made.unfinished == 0


def test_what_nobody_wants_is_dropped_and_later_computed_for_a_newcomer() -> None:
    made = queue(0, 1)
    one = candidate()
    first, second = put(made, one), put(made, one)
    batch = made.take(0, 0.0)
    made.cancel(first, 0.0)
    made.cancel(second, 0.0)
    assert made.live(batch, 0.0) == []
    third = put(made, one)
    settle(made, made.take(1, 0.0), 1.0)
    assert results(third) == [GOOD]


def test_a_failure_reaches_all_and_is_not_kept() -> None:
    made = queue()
    one = candidate()
    first, second = put(made, one), put(made, one)
    error = InternalError("the backend raised")
    made.settle_error(made.take(0, 0.0), error, 0.1, 1.0)
    assert results(first, second) == [error, error]
    third = put(made, one)
    settle(made, made.take(0, 2.0), 3.0)
    assert results(third) == [GOOD]


def test_a_twin_far_down_a_long_line_delays_nobody() -> None:
    """The place in line is each caller's own: whoever comes first, takes the score to all."""
    made = queue(budget=2)
    one = candidate()
    large = put(made, *[candidate() for _ in range(20)], one)
    small = put(made, one)
    first, second = made.take(0, 0.0), made.take(0, 0.0)
    assert one not in [entry.candidate for entry in first]
    assert one in [entry.candidate for entry in second]
    settle(made, second, 1.0)
    assert results(small) == [GOOD]
    assert large.outcomes[20] is not None


def test_a_lost_worker_takes_its_twins_to_another_one() -> None:
    made = queue(0, 1)
    one = candidate()
    first, second = put(made, one), put(made, one)
    batch = made.take(0, 0.0)
    made.cancel(first, 0.0)
    made.worker_lost(0, batch, [], "the worker died", 1.0)
    retried = made.take(1, 1.0)
    third = put(made, one, now=1.0)
    settle(made, retried, 2.0)
    assert results(second, third) == [GOOD, GOOD]


def test_the_last_lost_worker_fails_the_twins_too() -> None:
    made = queue(0)
    one = candidate()
    first, second = put(made, one), put(made, one)
    made.worker_lost(0, made.take(0, 0.0), [], "the worker died", 1.0)
    assert [type(result) for result in results(first, second)] == [NoWorker, NoWorker]
    assert made.unfinished == 0


def test_a_score_is_told_once_also_when_everybody_has_left() -> None:
    told: list[tuple[Candidate, Score]] = []
    made = queue(on_score=lambda one, score: told.append((one, score)))
    one = candidate()
    admissions = [put(made, one), put(made, one)]
    batch = made.take(0, 0.0)
    for admission in admissions:
        made.cancel(admission, 0.0)
    settle(made, batch, 1.0)
    assert told == [(one, GOOD)]


def test_a_score_that_is_known_needs_no_device() -> None:
    made = queue()
    admission = made.admit(1, 0.0, 60.0)
    made.recall(admission, 0, GOOD, 0.0)
    assert admission.outcomes[0] is not None
    assert (admission.outcomes[0].result, admission.outcomes[0].origin) == (GOOD, "stored")
    assert made.take(0, 0.0) == []


class TwinSchedule(Schedule):
    """The schedule of the queue's own property test, with few distinct candidates."""

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self.pool = [candidate(tokens, source) for tokens in (1, 2, 3) for source in (None, "x", "y")]

    def put(self) -> None:
        admission = self.some_admission()
        for index in range(len(admission.outcomes)):
            if index not in admission.entries and self.random.random() < 0.8:
                self.queue.put(admission, index, self.random.choice(self.pool), self.now)

    def receive(self, worker: int, *, only_full: bool) -> list[Entry]:
        entries = self.queue.take(worker, self.now, only_full=only_full)
        held = [entry for lists in (self.held, self.ahead) for held in lists.values() for entry in held]
        for entry in entries:
            assert entry.wanted
            assert worker not in self.lost_with.get(entry, [])
        candidates = [entry.candidate for entry in [*held, *entries] if entry.wanted]
        assert len(set(candidates)) == len(candidates)
        return entries

    def start(self, worker: int) -> list[Entry]:
        live = self.queue.live(self.held[worker], self.now)
        assert all(entry.wanted for entry in live)
        self.queue.start(live, self.now)
        return live


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_twins_end_once_each_and_are_never_on_two_devices(seed: int) -> None:
    TwinSchedule(Random(seed)).play(steps=250)
