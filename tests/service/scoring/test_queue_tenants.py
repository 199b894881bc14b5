"""Fair admission: a queue kept full by one tenant lets another one in when it comes back as told."""

from __future__ import annotations

import pytest

from jrm_service.errors import Overloaded
from jrm_service.scoring.backend import Scored
from jrm_service.scoring.queue import ScoreQueue
from jrm_service.scoring.types import Dimension, Score
from service.scoring.support import candidate

GOOD = Score(0.5, None, {"visual_quality": Dimension(0.5, None)})


def arrive(queue: ScoreQueue, tenant: str, count: int, now: float) -> None:
    admission = queue.admit(count, now, now + 600.0, tenant=tenant)
    for index in range(count):
        queue.put(admission, index, candidate(), now)


def refill(queue: ScoreQueue, now: float) -> None:
    while True:
        try:
            arrive(queue, "greedy", 1, now)
        except Overloaded:
            return


def finish_a_batch(queue: ScoreQueue, now: float) -> set[str]:
    batch = queue.take(0, now)
    queue.start(batch, now)
    queue.settle(batch, Scored([GOOD] * len(batch), 0), 1.0, now + 1.0)
    return {entry.tenant for entry in batch}


def test_who_comes_back_after_retry_after_is_let_in_and_served_next() -> None:
    queue = ScoreQueue(max_batch_tokens=10, max_queue=40)
    queue.worker_up(0)
    refill(queue, 0.0)
    finish_a_batch(queue, 0.0)
    refill(queue, 1.0)
    with pytest.raises(Overloaded) as refused:
        arrive(queue, "small", 12, 1.0)
    assert refused.value.retry_after is not None
    now = 1.0
    while now < 1.0 + refused.value.retry_after:
        finish_a_batch(queue, now)
        now += 1.0
        refill(queue, now)
    arrive(queue, "small", 12, now)
    assert "small" in finish_a_batch(queue, now) | finish_a_batch(queue, now + 1.0)


def test_the_greedy_one_is_refused_meanwhile_and_let_in_afterwards() -> None:
    queue = ScoreQueue(max_batch_tokens=10, max_queue=40)
    queue.worker_up(0)
    refill(queue, 0.0)
    with pytest.raises(Overloaded):
        arrive(queue, "small", 12, 0.0)
    finish_a_batch(queue, 0.0)
    with pytest.raises(Overloaded):
        arrive(queue, "greedy", 1, 1.0)
    arrive(queue, "greedy", 1, 500.0)  # who asked has not come back
