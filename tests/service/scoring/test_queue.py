"""The queue's bookkeeping, by example; the time is an argument."""

from __future__ import annotations

from typing import Any

import pytest

from jrm_service.errors import (
    CandidateError,
    DeadlineExceeded,
    Draining,
    InternalError,
    InvalidImage,
    NotReady,
    NoWorker,
    Overloaded,
    PayloadTooLarge,
)
from jrm_service.scoring.backend import Scored
from jrm_service.scoring.outcomes import Cancelled
from jrm_service.scoring.queue import Admission, Entry, ScoreQueue
from jrm_service.scoring.types import Dimension, Score
from service.scoring.support import candidate

GOOD = Score(0.5, None, {"visual_quality": Dimension(0.5, None)})


def queue(*workers: int, max_queue: int = 100, budget: int = 10) -> ScoreQueue:
    made = ScoreQueue(max_batch_tokens=budget, max_queue=max_queue)
    for worker in workers or (0,):
        made.worker_up(worker)
    return made


def waiting(made: ScoreQueue, count: int, *, now: float = 0.0, deadline: float = 60.0) -> Admission:
    admission = made.admit(count, now, deadline)
    for index in range(count):
        made.put(admission, index, candidate(), now)
    return admission


def good(entries: list[Entry], tokens: int = 0) -> Scored:
    return Scored([GOOD] * len(entries), tokens)


def results(admission: Admission) -> list[Any]:
    return [outcome and outcome.result for outcome in admission.outcomes]


def kinds(admission: Admission) -> list[type]:
    return [type(result) for result in results(admission)]


def test_a_score_reaches_its_own_index() -> None:
    made = queue()
    admission = made.admit(2, 0.0, 60.0)
    made.put(admission, 1, candidate(), 1.0)
    made.fail(admission, 0, InvalidImage("truncated"), 1.0)
    batch = made.take(0, 2.0)
    made.start(batch, 3.0)
    made.settle(batch, good(batch, tokens=9), seconds=0.25, now=3.25)
    failed, scored = admission.outcomes
    assert failed is not None
    assert scored is not None
    assert isinstance(failed.result, InvalidImage)
    assert (scored.result, scored.queue_ms, scored.inference_ms, scored.tokens_computed) == (GOOD, 2000.0, 250.0, 9)
    assert made.unfinished == 0


def test_admission_is_all_or_nothing() -> None:
    made = queue(max_queue=4)
    made.admit(3, 0.0, 60.0)
    with pytest.raises(Overloaded):
        made.admit(2, 0.0, 60.0)
    assert made.unfinished == 3
    made.admit(1, 0.0, 60.0)


def test_more_than_the_queue_ever_holds_is_too_large() -> None:
    with pytest.raises(PayloadTooLarge, match="5 candidates; the queue holds at most 4"):
        queue(max_queue=4).admit(5, 0.0, 60.0)


def test_no_candidates_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        queue().admit(0, 0.0, 60.0)


def test_retry_after_follows_the_measured_drain_rate() -> None:
    made = queue(max_queue=20)
    waiting(made, 20)
    batch = made.take(0, 0.0)
    made.settle(batch, good(batch), 2.0, now=2.0)  # 10 candidates in 2 seconds
    made.admit(8, 2.0, 60.0)
    with pytest.raises(Overloaded) as refused:
        made.admit(6, 2.0, 60.0)  # 18 + 6 - 20 = 4 too many
    assert refused.value.retry_after == pytest.approx(0.8)


def test_retry_after_is_given_before_any_measurement() -> None:
    made = queue(max_queue=1)
    made.admit(1, 0.0, 60.0)
    with pytest.raises(Overloaded) as refused:
        made.admit(1, 0.0, 60.0)
    assert refused.value.retry_after == 1.0


def test_expired_places_are_free_for_the_next_caller() -> None:
    made = queue(max_queue=1)
    made.admit(1, 0.0, 5.0)
    made.admit(1, 5.0, 60.0)


def test_without_a_worker_nobody_is_admitted() -> None:
    with pytest.raises(NotReady) as refused:
        ScoreQueue(max_batch_tokens=10, max_queue=10).admit(1, 0.0, 60.0)
    assert refused.value.retry_after is not None


def test_a_closed_queue_finishes_what_it_admitted() -> None:
    made = queue()
    admission = made.admit(1, 0.0, 60.0)
    made.close()
    with pytest.raises(Draining):
        made.admit(1, 0.0, 60.0)
    made.put(admission, 0, candidate(), 0.0)
    batch = made.take(0, 0.0)
    made.settle(batch, good(batch), 0.1, 0.1)
    assert results(admission) == [GOOD]


def test_a_deadline_reaches_candidates_wherever_they_are() -> None:
    made = queue(budget=1)
    admission = made.admit(3, 0.0, 5.0)
    made.put(admission, 0, candidate(), 0.0)
    made.put(admission, 1, candidate(), 0.0)
    made.start(made.take(0, 0.0), 0.0)
    assert made.next_deadline == 5.0
    made.expire(4.999)
    assert results(admission) == [None, None, None]
    made.expire(5.0)
    assert kinds(admission) == [DeadlineExceeded] * 3
    assert [str(error).rpartition("passed ")[2] for error in results(admission)] == [
        "while a device was scoring it",
        "while it waited for a device",
        "before it was preprocessed",
    ]
    assert made.next_deadline is None


def test_the_expired_and_the_cancelled_are_never_handed_out() -> None:
    made = queue()
    waiting(made, 2, deadline=5.0)
    gone = waiting(made, 2)
    stays = waiting(made, 1)
    made.cancel(gone, 1.0)
    assert [entry.admission for entry in made.take(0, 5.0)] == [stays]
    assert kinds(gone) == [Cancelled, Cancelled]


def test_those_who_left_after_being_handed_out_are_told_apart() -> None:
    made = queue()
    gone, stays = waiting(made, 2), waiting(made, 1)
    batch = made.take(0, 0.0)
    made.cancel(gone, 1.0)
    assert [entry.admission for entry in made.live(batch, 1.0)] == [stays]


def test_a_late_result_is_dropped() -> None:
    made = queue()
    admission = waiting(made, 1, deadline=5.0)
    batch = made.take(0, 0.0)
    made.expire(6.0)
    made.settle(batch, good(batch), 7.0, 7.0)
    assert kinds(admission) == [DeadlineExceeded]
    assert made.unfinished == 0


def test_putting_after_the_end_is_ignored_and_putting_twice_is_a_mistake() -> None:
    made = queue()
    admission = made.admit(1, 0.0, 60.0)
    made.put(admission, 0, candidate(), 0.0)
    with pytest.raises(ValueError, match="candidate 0 was already put"):
        made.put(admission, 0, candidate(), 0.0)
    made.cancel(admission, 1.0)
    made.put(admission, 0, candidate(), 1.0)
    assert made.take(0, 1.0) == []


def test_a_lost_workers_candidates_are_retried_on_another_one_only() -> None:
    made = queue(0, 1)
    admission = waiting(made, 2)
    batch = made.take(0, 0.0)
    made.worker_lost(0, batch, [], "the worker on cuda:0 died", 1.0)
    made.worker_up(0)
    assert made.take(0, 1.0) == []
    again = made.take(1, 1.0)
    assert again == batch
    made.settle(again, good(again), 0.1, 2.0)
    assert results(admission) == [GOOD, GOOD]


def test_a_retry_is_not_retried() -> None:
    made = queue(0, 1, 2)
    admission = waiting(made, 1)
    made.worker_lost(0, made.take(0, 0.0), [], "the worker on cuda:0 died", 1.0)
    made.worker_lost(1, made.take(1, 0.0), [], "the worker on cuda:1 died", 1.0)
    assert kinds(admission) == [InternalError]
    assert "cuda:1 died; this was already its retry" in str(results(admission)[0])


def test_a_retry_given_back_unstarted_still_avoids_the_worker_that_was_lost_with_it() -> None:
    made = queue(0, 1, 2)
    waiting(made, 1)
    batch = made.take(0, 0.0)
    made.worker_lost(0, batch, [], "the worker on cuda:0 hung", 1.0)
    made.worker_up(0)
    made.worker_lost(1, [], made.take(1, 1.0), "the worker on cuda:1 died", 1.0)
    assert made.take(0, 1.0) == []
    assert made.take(2, 1.0) == batch


def test_what_a_lost_worker_had_not_started_goes_back_to_the_front() -> None:
    made = queue(0, 1, 2)
    first, second = waiting(made, 10), waiting(made, 10)
    ahead = made.take(0, 0.0)
    made.worker_lost(0, [], ahead, "the worker on cuda:0 died", 1.0)
    made.worker_lost(1, made.take(1, 1.0), [], "the worker on cuda:1 died", 1.0)
    assert {entry.admission for entry in made.take(2, 2.0)} == {first}
    assert {entry.admission for entry in made.take(2, 2.0)} == {second}


def test_without_another_worker_nothing_waits_for_ever() -> None:
    made = queue(0)
    running, queued, empty = waiting(made, 10), waiting(made, 1), made.admit(1, 0.0, 60.0)
    made.worker_lost(0, made.take(0, 0.0), [], "the worker on cuda:0 hung", 1.0)
    made.put(empty, 0, candidate(), 2.0)
    assert kinds(running) + kinds(queued) + kinds(empty) == [NoWorker] * 12
    assert made.unfinished == 0


def test_a_waiting_retry_fails_when_the_only_worker_that_may_take_it_is_lost() -> None:
    made = queue(0, 1)
    admission = waiting(made, 1)
    made.worker_lost(0, made.take(0, 0.0), [], "the worker on cuda:0 hung", 1.0)
    made.worker_up(0)
    made.worker_lost(1, [], [], "the worker on cuda:1 died", 2.0)
    assert kinds(admission) == [NoWorker]


def test_abandoning_ends_everything() -> None:
    made = queue()
    admission = waiting(made, 3)
    made.take(0, 0.0)
    made.abandon("the server stopped", 1.0)
    assert kinds(admission) == [InternalError] * 3
    assert made.unfinished == 0


def test_the_listener_hears_each_index_once() -> None:
    made = queue()
    heard: list[tuple[int, str]] = []
    admission = made.admit(2, 0.0, 60.0, lambda index, outcome, now: heard.append((index, outcome.label)))
    made.put(admission, 0, candidate(), 0.0)
    batch = made.take(0, 0.0)
    made.settle(batch, good(batch), 0.1, 0.1)
    made.fail(admission, 0, CandidateError("late"), 0.2)
    made.cancel(admission, 0.3)
    assert heard == [(0, "ok"), (1, "cancelled")]
