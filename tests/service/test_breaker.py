"""The circuit breaker, on a clock by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jrm_service.breaker import Attempt, Circuit, CircuitBreaker
from service.scoring.support import Clock


def breaker(clock: Clock) -> CircuitBreaker:
    return CircuitBreaker(failures=3, cooldown_s=1.0, max_cooldown_s=3.0, clock=clock)


def let_through(made: CircuitBreaker) -> Attempt:
    attempt = made.attempt()
    assert attempt is not None
    return attempt


def opened(clock: Clock) -> CircuitBreaker:
    made = breaker(clock)
    for _ in range(3):
        made.failed(let_through(made))
    assert made.state is Circuit.OPEN
    return made


def test_failures_in_a_row_open_it() -> None:
    made = breaker(Clock())
    for _ in range(2):
        made.failed(let_through(made))
    made.succeeded(let_through(made))
    for _ in range(2):
        made.failed(let_through(made))
    assert made.state is Circuit.CLOSED
    made.failed(let_through(made))
    assert made.state is Circuit.OPEN
    assert made.attempt() is None


def test_after_the_cooldown_one_call_is_on_trial() -> None:
    clock = Clock()
    made = opened(clock)
    clock.now += 0.99
    assert made.attempt() is None
    clock.now += 0.01
    assert made.state is Circuit.HALF_OPEN
    trial = let_through(made)
    assert made.attempt() is None
    made.succeeded(trial)
    assert made.state is Circuit.CLOSED
    let_through(made)


def test_a_failed_trial_doubles_the_cooldown_up_to_the_longest() -> None:
    clock = Clock()
    made = opened(clock)
    for cooldown in (1.0, 2.0, 3.0, 3.0):
        clock.now += cooldown - 0.01
        assert made.attempt() is None
        clock.now += 0.01
        made.failed(let_through(made))
    clock.now += 3.0
    made.succeeded(let_through(made))
    for _ in range(3):
        made.failed(let_through(made))
    clock.now += 1.0
    assert made.state is Circuit.HALF_OPEN


def test_an_abandoned_trial_decides_nothing() -> None:
    clock = Clock()
    made = opened(clock)
    clock.now += 1.0
    made.abandoned(let_through(made))
    assert made.state is Circuit.HALF_OPEN
    made.succeeded(let_through(made))
    assert made.state is Circuit.CLOSED


def test_calls_from_before_it_opened_change_nothing() -> None:
    clock = Clock()
    made = breaker(clock)
    late = [let_through(made) for _ in range(3)]
    for _ in range(3):
        made.failed(let_through(made))
    made.succeeded(late[0])
    assert made.state is Circuit.OPEN
    clock.now += 1.0
    trial = let_through(made)
    made.failed(late[1])
    made.abandoned(late[2])
    assert made.attempt() is None
    made.succeeded(trial)
    assert made.state is Circuit.CLOSED


@given(moves=st.lists(st.tuples(st.sampled_from(["succeeded", "failed", "abandoned"]), st.floats(0.0, 2.0))))
def test_it_never_lets_more_than_the_failures_and_one_trial_per_cooldown_through(
    moves: list[tuple[str, float]],
) -> None:
    """Whatever happens, what fails is bounded: three in a row, then at most one for every second."""
    clock = Clock()
    made = breaker(clock)
    row: list[float] = []
    for end, pause in moves:
        clock.now += pause
        attempt = made.attempt()
        if attempt is None:
            assert len(row) >= 3
            continue
        if len(row) >= 3:
            assert clock.now - row[-1] >= 1.0
        getattr(made, end)(attempt)
        if end == "failed":
            row.append(clock.now)
        elif end == "succeeded":
            row.clear()


@pytest.mark.parametrize(("failures", "cooldown_s"), [(0, 1.0), (1, 0.0), (1, 4.0)])
def test_numbers_that_make_no_sense_are_refused(failures: int, cooldown_s: float) -> None:
    with pytest.raises(ValueError, match="cooldown_s"):
        CircuitBreaker(failures=failures, cooldown_s=cooldown_s, max_cooldown_s=3.0, clock=Clock())
