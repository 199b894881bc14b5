"""The queue's bookkeeping, by example; the time is an argument."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import wraps
from typing import Any

from jrm_service.errors import CandidateTooLarge, DeviceLost, DeviceMemoryTaken, InternalError
from jrm_service.scoring.backend import BatchResult
from jrm_service.scoring.outcomes import Cancelled
from jrm_service.scoring.queue import MOST_TRIES, ScoreQueue, Task
from jrm_service.scoring.request import Request
from jrm_service.scoring.types import Candidate, Dimension, Score
from service.scoring.support import candidate, request_of, run_virtual

GOOD = Score(0.5, None, {"visual_quality": Dimension(0.5, None)})


def in_a_loop(test: Callable[[], None]) -> Callable[[], None]:
    """Futures belong to an event loop, and nothing here waits for anything."""

    @wraps(test)
    def run() -> None:
        async def main() -> None:
            test()

        run_virtual(main())

    return run


def queue(budget: int = 10, **options: Any) -> ScoreQueue:
    return ScoreQueue(max_batch_tokens=budget, **options)


def put(made: ScoreQueue, *candidates: Candidate, now: float = 0.0) -> Request:
    request = request_of(candidates)
    for entry in request.entries:
        made.put(entry, now)
    return request


def waiting(made: ScoreQueue, count: int) -> Request:
    return put(made, *(candidate() for _ in range(count)))


def leave(made: ScoreQueue, request: Request) -> None:
    """The caller leaves, and its entries are let go of, as the batcher does when their futures are done."""
    request.cancel()
    for entry in request.entries:
        made.drop(entry)


def settle(made: ScoreQueue, batch: list[Task], now: float = 1.0, tokens: int = 0, result: Any = GOOD) -> None:
    made.settle(batch, BatchResult([result] * len(batch), tokens), seconds=0.25, now=now)


def results(*requests: Request) -> list[Any]:
    return [
        entry.future.result().result if entry.future.done() else None
        for request in requests
        for entry in request.entries
    ]


def kinds(request: Request) -> list[type]:
    return [type(result) for result in results(request)]


def lose_all(made: ScoreQueue, now: float = 1.0) -> list[list[Task]]:
    """Lose a worker with each batch until there is none left; the batches in order."""
    batches = []
    while batch := made.take():
        batches.append(batch)
        made.worker_lost(batch, "the worker on cuda:0 died", now)
    return batches


def assert_empty(made: ScoreQueue) -> None:
    assert (len(made._planner), made._waiting, made._working, list(made._again)) == (0, {}, {}, [])


@in_a_loop
def test_a_score_reaches_its_own_entry_with_its_times_and_tokens() -> None:
    made = queue()
    large, small = candidate(tokens=6), candidate(tokens=3)
    request = put(made, large, small, now=1.0)
    batch = made.take()
    assert [task.candidate for task in batch] == [large, small]
    made.start(batch, 3.0)
    other = Score(0.7, None, {})
    made.settle(batch, BatchResult([GOOD, other], 18), seconds=0.25, now=3.25)
    first, second = (entry.future.result() for entry in request.entries)
    assert (first.result, first.queue_ms, first.inference_ms, first.tokens_computed) == (GOOD, 2000.0, 250.0, 12)
    assert (second.result, second.tokens_computed, second.origin) == (other, 6, "computed")
    assert_empty(made)


@in_a_loop
def test_what_ended_before_it_was_put_is_not_queued() -> None:
    made = queue()
    request = request_of([candidate()])
    request.cancel()
    made.put(request.entries[0], 0.0)
    assert made.take() == []
    assert_empty(made)


@in_a_loop
def test_what_ended_while_it_waited_is_never_handed_out_and_its_pixels_are_let_go_of() -> None:
    made = queue()
    gone, stays = waiting(made, 2), waiting(made, 1)
    leave(made, gone)
    assert [task.entries for task in made.take()] == [stays.entries]
    assert [entry.prepared for entry in gone.entries] == [None, None]


@in_a_loop
def test_what_has_just_ended_is_not_handed_out_although_nobody_has_dropped_it_yet() -> None:
    made = queue(budget=2)
    gone, stays = waiting(made, 4), waiting(made, 1)
    gone.cancel()
    batch = made.take()
    assert [task.entries for task in batch] == [stays.entries]
    for entry in gone.entries:
        made.drop(entry)
    settle(made, batch)
    assert_empty(made)


@in_a_loop
def test_a_late_answer_is_dropped() -> None:
    made = queue()
    request = waiting(made, 1)
    batch = made.take()
    leave(made, request)
    settle(made, batch)
    assert [type(result) for result in results(request)] == [Cancelled]
    assert_empty(made)


@in_a_loop
def test_a_full_batch_only_is_what_nobody_could_still_join() -> None:
    made = queue(budget=3)
    waiting(made, 2)
    assert made.take(only_full=True) == []
    waiting(made, 1)
    assert len(made.take(only_full=True)) == 3


@in_a_loop
def test_a_batch_costs_what_the_queue_was_told() -> None:
    made = queue(budget=5, cost=len)
    put(made, *(candidate(tokens=9) for _ in range(8)))
    assert [len(made.take()) for _ in range(3)] == [5, 3, 0]


@in_a_loop
def test_what_was_never_begun_goes_back_to_the_front_in_order() -> None:
    made = queue(budget=2)
    waiting(made, 6)
    first, second = made.take(), made.take()
    made.give_back(second)
    made.give_back(first)
    assert [made.take(only_full=True), made.take()] == [first, second]
    assert len(made.take()) == 2


@in_a_loop
def test_giving_a_batch_back_is_no_try() -> None:
    made = queue()
    request = waiting(made, 1)
    for _ in range(2 * MOST_TRIES):
        made.give_back(made.take())
    settle(made, made.take())
    assert results(request) == [GOOD]


@in_a_loop
def test_no_memory_is_the_candidates_fault_only_above_the_budget() -> None:
    made = queue(budget=5)
    small, large = put(made, candidate(tokens=5)), put(made, candidate(tokens=6))
    settle(made, made.take(), result=DeviceMemoryTaken("5 tokens do not fit"))
    settle(made, made.take(), result=DeviceMemoryTaken("6 tokens do not fit"))
    assert kinds(small) + kinds(large) == [DeviceMemoryTaken, CandidateTooLarge]
    assert str(results(large)[0]) == "6 tokens do not fit"


# --- lost workers -----------------------------------------------------------------------------------------------------


@in_a_loop
def test_a_lost_batch_is_tried_again_in_halves_and_then_one_by_one_in_order() -> None:
    made = queue()
    request = waiting(made, 5)
    later = waiting(made, 1)
    sizes = [len(batch) for batch in lose_all(made)]
    assert sizes[:8] == [6, 3, 1, 1, 1, 3, 1, 1]
    assert sizes[8:] == [1]
    assert kinds(request) + kinds(later) == [DeviceLost] * 6
    assert str(results(request)[0]) == "the worker on cuda:0 died; it was tried 3 times"
    outcome = request.entries[0].future.result()
    assert (outcome.inference_ms, outcome.tokens_computed) == (0.0, 0)
    assert_empty(made)


@in_a_loop
def test_what_is_tried_again_goes_before_what_waits() -> None:
    made = queue(budget=4)
    lost, waits = waiting(made, 4), waiting(made, 4)
    made.worker_lost(made.take(), "died", 1.0)
    taken = [[task.entries[0] for task in made.take()] for _ in range(3)]
    assert taken == [lost.entries[:2], lost.entries[2:], waits.entries]


@in_a_loop
def test_one_that_kills_its_workers_is_found_and_its_neighbours_are_scored() -> None:
    for position in range(12):
        made = queue(budget=12)
        request = waiting(made, 12)
        killer = request.entries[position]
        tries = 0
        while batch := made.take():
            if any(killer in task.entries for task in batch):
                tries += 1
                made.worker_lost(batch, "died", 1.0)
            else:
                settle(made, batch)
        kinds_expected = [DeviceLost if index == position else Score for index in range(12)]
        assert (kinds(request), tries) == (kinds_expected, MOST_TRIES), position
        assert_empty(made)


@in_a_loop
def test_who_has_left_is_not_tried_again() -> None:
    made = queue()
    gone, stays = waiting(made, 2), waiting(made, 2)
    batch = made.take()
    leave(made, gone)
    made.worker_lost(batch, "died", 1.0)
    assert [task.entries[0] for task in made.take()] == stays.entries[:1]
    leave(made, stays)
    assert made.take() == []


# --- identical candidates ---------------------------------------------------------------------------------------------


@in_a_loop
def test_identical_candidates_of_one_request_are_one_in_the_batch() -> None:
    made = queue()
    same, other = candidate(), candidate()
    request = put(made, same, other, same, same)
    batch = made.take()
    assert [task.candidate for task in batch] == [same, other]
    made.start(batch, 1.0)
    settle(made, batch, 2.0, tokens=10)
    ends = [entry.future.result() for entry in request.entries]
    assert [end.result for end in ends] == [GOOD] * 4
    assert [end.origin for end in ends] == ["computed", "computed", "shared", "shared"]
    assert [end.tokens_computed for end in ends] == [5, 5, 0, 0]
    assert {(end.queue_ms, end.inference_ms) for end in ends} == {(1000.0, 250.0)}
    assert_empty(made)


@in_a_loop
def test_one_that_comes_while_an_identical_one_is_on_a_device_gets_that_score() -> None:
    made = queue()
    same = candidate()
    first = put(made, same)
    batch = made.take()
    made.start(batch, 0.0)
    second = put(made, same, now=1.0)
    assert made.take() == []
    settle(made, batch, 2.0)
    assert results(first, second) == [GOOD, GOOD]
    assert second.entries[0].future.result().queue_ms == 0.0


@in_a_loop
def test_one_that_comes_before_an_identical_one_is_begun_waits_until_then() -> None:
    same = candidate()
    for begin in (True, False):
        made = queue()
        put(made, same)
        batch = made.take()
        second = put(made, same, now=1.0)
        if begin:
            made.start(batch, 3.0)
        settle(made, batch, 3.0)
        assert second.entries[0].future.result().queue_ms == 2000.0, begin


@in_a_loop
def test_identical_candidates_differ_in_nothing() -> None:
    made = queue()
    base = candidate(source="s", instruction="a")
    other_text = Candidate(base.sources, base.edited, "b", base.sequences)
    swapped = Candidate((base.edited,), base.sources[0], "a", base.sequences)
    put(made, base, other_text, swapped)
    assert len(made.take()) == 3


@in_a_loop
def test_a_caller_who_leaves_takes_nothing_from_another_with_an_identical_candidate() -> None:
    for first_leaves in (True, False):
        for on_device in (True, False):
            made = queue()
            same = candidate()
            requests = [put(made, same), put(made, same)]
            batch = made.take() if on_device else []
            leaving, staying = requests if first_leaves else reversed(requests)
            leave(made, leaving)
            settle(made, batch or made.take())
            assert kinds(leaving) == [Cancelled]
            assert results(staying) == [GOOD], (first_leaves, on_device)
            assert_empty(made)


@in_a_loop
def test_what_nobody_wants_is_dropped_and_later_computed_for_a_newcomer() -> None:
    made = queue()
    same = candidate()
    first = put(made, same)
    made.give_back(made.take())
    leave(made, first)
    assert made.take() == []
    second = put(made, same)
    settle(made, made.take())
    assert results(second) == [GOOD]
    assert_empty(made)


@in_a_loop
def test_a_failure_reaches_all_and_is_not_kept() -> None:
    made = queue()
    same = candidate()
    first, second = put(made, same), put(made, same)
    error = InternalError("the backend raised")
    settle(made, made.take(), result=error)
    assert results(first, second) == [error, error]
    third = put(made, same)
    settle(made, made.take())
    assert results(third) == [GOOD]


@in_a_loop
def test_an_identical_candidate_far_down_a_long_line_delays_nobody() -> None:
    """The place in line is each caller's own: whoever comes first, takes the score to all."""
    made = queue(budget=2)
    same = candidate()
    large = put(made, *[candidate() for _ in range(20)], same)
    small = put(made, same)
    first, second = made.take(), made.take()
    assert same not in [task.candidate for task in first]
    assert same in [task.candidate for task in second]
    settle(made, second)
    assert results(small) == [GOOD]
    assert large.entries[20].future.done()


@in_a_loop
def test_identical_candidates_are_tried_again_and_lost_together() -> None:
    made = queue()
    same = candidate()
    first, second = put(made, same), put(made, same)
    made.worker_lost(made.take(), "died", 1.0)
    third = put(made, same)
    made.worker_lost(made.take(), "died", 1.0)
    leave(made, first)
    made.worker_lost(made.take(), "died", 1.0)
    assert kinds(first) + kinds(second) + kinds(third) == [Cancelled, DeviceLost, DeviceLost]
    assert_empty(made)


@in_a_loop
def test_a_score_is_told_once_also_when_everybody_has_left() -> None:
    told: list[tuple[Candidate, Score]] = []
    made = queue(on_score=lambda scored, score: told.append((scored, score)))
    same = candidate()
    requests = [put(made, same), put(made, same)]
    batch = made.take()
    for request in requests:
        leave(made, request)
    settle(made, batch)
    assert told == [(same, GOOD)]


def test_pixels_do_not_outlive_their_entry() -> None:
    """The batcher drops an entry as soon as its future is done."""

    async def main() -> None:
        made = queue()
        request = put(made, candidate(), candidate())
        for entry in request.entries:
            entry.future.add_done_callback(lambda _future, entry=entry: made.drop(entry))
        settle(made, made.take())
        await asyncio.sleep(0)
        assert [entry.prepared for entry in request.entries] == [None, None]

    run_virtual(main())
