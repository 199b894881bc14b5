"""What a full queue tells, and what becomes of those who do as they are told."""

from __future__ import annotations

import pytest

from jrm_service.errors import InternalError, Overloaded
from jrm_service.scoring.backend import Scored
from jrm_service.scoring.queue import Admission, ScoreQueue
from service.scoring.support import candidate


def full(places: int = 24) -> tuple[ScoreQueue, list[Admission]]:
    """A queue of requests with 12 candidates each, which was seen to drain at 12 per second, at the time 1."""
    queue = ScoreQueue(max_batch_tokens=10_000, max_queue=places)
    queue.worker_up(0)
    seen = queue.admit(12, 0.0, 600.0)
    for index in range(12):
        queue.put(seen, index, candidate(), 0.0)
    batch = queue.take(0, 0.0)
    queue.settle(batch, Scored([InternalError("measured")] * len(batch), 0), 1.0, now=1.0)
    return queue, [queue.admit(12, 1.0, 600.0) for _ in range(places // 12)]


def told(queue: ScoreQueue, now: float, request_id: str = "") -> float:
    with pytest.raises(Overloaded) as refusal:
        queue.admit(12, now, 600.0, request_id=request_id)
    assert refusal.value.retry_after is not None
    return refusal.value.retry_after


def leave(queue: ScoreQueue, admission: Admission, now: float) -> None:
    for index in range(12):
        queue.fail(admission, index, InternalError("done"), now)


def test_each_is_told_a_later_time_than_the_one_before() -> None:
    queue, _ = full()
    assert [told(queue, 1.0, name) for name in "abc"] == pytest.approx([1.0, 2.0, 3.0])


def test_who_comes_when_told_gets_in_before_newcomers() -> None:
    queue, [first, _] = full()
    assert told(queue, 1.0, "patient") == pytest.approx(1.0)
    leave(queue, first, 1.5)
    told(queue, 1.6, "newcomer")
    told(queue, 1.6)
    queue.admit(12, 2.0, 600.0, request_id="patient")
    assert queue.unfinished == 24


def test_asking_again_at_once_gains_nothing() -> None:
    queue, [first, _] = full()
    told(queue, 1.0, "a")
    told(queue, 1.0, "b")
    leave(queue, first, 1.2)
    told(queue, 1.3, "b")
    queue.admit(12, 2.0, 600.0, request_id="a")


def test_half_of_the_queue_stays_open_to_newcomers() -> None:
    queue, admitted = full(48)
    for name in "abcdefgh":
        told(queue, 1.0, name)
    leave(queue, admitted[0], 1.1)
    leave(queue, admitted[1], 1.1)
    told(queue, 1.2, "newcomer")
    leave(queue, admitted[2], 1.3)
    queue.admit(12, 1.4, 600.0, request_id="newcomer")
