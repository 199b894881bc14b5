"""A request's futures: the first outcome of a candidate stands, and nobody waits past the deadline."""

from __future__ import annotations

import asyncio

from jrm_service.errors import DeadlineExceeded, InvalidImage
from jrm_service.scoring.outcomes import Cancelled, Outcome
from jrm_service.scoring.request import Request
from jrm_service.scoring.types import Score
from service.scoring.support import candidate, now, run_virtual

GOOD = Score(0.5, None, {})


def test_there_is_a_future_for_each_candidate_of_each_group() -> None:
    async def main() -> None:
        request, other = Request("alice", 60.0, [2, 1]), Request("alice", 60.0, [1])
        assert len(request.entries) == 3
        assert {(entry.request, entry.tenant) for entry in request.entries} == {(request.number, "alice")}
        assert request.number != other.number

    run_virtual(main())


def test_outcomes_come_in_order_as_soon_as_all_are_there() -> None:
    async def main() -> None:
        request = Request("", 60.0, [3])
        waiting = asyncio.create_task(request.outcomes())
        first, second, third = request.entries
        third.end(Outcome(GOOD))
        second.fail(InvalidImage("truncated"))
        await asyncio.sleep(1.0)
        assert not waiting.done()
        first.end(Outcome(GOOD, queue_ms=1.0))
        assert [outcome.label for outcome in await waiting] == ["ok", "invalid_image", "ok"]
        assert (now(), [entry.ended_at for entry in request.entries]) == (1.0, [1.0, 0.0, 0.0])

    run_virtual(main())


def test_the_first_outcome_stands() -> None:
    async def main() -> None:
        request = Request("", 60.0, [1])
        [entry] = request.entries
        entry.end(Outcome(GOOD))
        entry.fail(InvalidImage("late"))
        request.expire()
        request.cancel()
        assert [outcome.result for outcome in await request.outcomes()] == [GOOD]

    run_virtual(main())


def test_the_deadline_ends_what_is_unfinished_and_says_what_it_waited_for() -> None:
    async def main() -> None:
        request = Request("", 5.0, [4])
        scored, running, queued, _ = request.entries
        scored.end(Outcome(GOOD))
        for entry in (running, queued):
            entry.prepared, entry.put_at = candidate(), 1.0
        running.started_at = 2.0
        outcomes = await request.outcomes()
        assert now() == 5.0
        assert outcomes[0].result == GOOD
        assert [type(outcome.result) for outcome in outcomes[1:]] == [DeadlineExceeded] * 3
        assert [str(outcome.result) for outcome in outcomes[1:]] == [
            "timeout_ms passed while a device was scoring it",
            "timeout_ms passed while it waited for a device",
            "timeout_ms passed before it was preprocessed",
        ]

    run_virtual(main())


def test_a_deadline_that_has_passed_waits_for_nothing() -> None:
    async def main() -> None:
        await asyncio.sleep(10.0)
        request = Request("", 5.0, [2])
        request.entries[0].end(Outcome(GOOD))
        labels = [outcome.label for outcome in await request.outcomes()]
        assert (labels, now()) == (["ok", "deadline_exceeded"], 10.0)

    run_virtual(main())


def test_a_caller_who_leaves_ends_what_is_unfinished() -> None:
    async def main() -> None:
        request = Request("", 60.0, [2])
        request.entries[0].end(Outcome(GOOD))
        request.cancel()
        results = [outcome.result for outcome in await request.outcomes()]
        assert results[0] == GOOD
        assert isinstance(results[1], Cancelled)

    run_virtual(main())
