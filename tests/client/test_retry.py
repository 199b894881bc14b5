import math
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jrm_client import APIConnectionError, APIResponseError, APIStatusError, JRMError
from jrm_client.retry import (
    FIRST_DELAY,
    MAX_DELAY,
    RETRY_AFTER_JITTER,
    Backoff,
    Schedule,
    ejects,
    parse_retry_after,
    retryable,
)
from support.cases import each

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp()
LONGEST = Backoff(uniform=lambda low, high: high)
SHORTEST = Backoff(uniform=lambda low, high: low)
DOWN = APIConnectionError("down")


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_statuses_that_are_retried(status: int) -> None:
    assert retryable(APIStatusError("", status=status))


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 405, 409, 413, 415, 422, 501, 504, 505])
def test_statuses_that_are_final(status: int) -> None:
    assert not retryable(APIStatusError("", status=status))


@pytest.mark.parametrize(("failure", "expected"), [(DOWN, True), (APIResponseError("nonsense"), False)])
def test_other_failures(failure: JRMError, expected: bool) -> None:
    assert retryable(failure) is expected


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("3", 3.0),
        (" 0.5 ", 0.5),
        (format_datetime(datetime(2026, 1, 2, 3, 4, 35, tzinfo=UTC), usegmt=True), 30.0),
        (format_datetime(datetime(2020, 1, 1, tzinfo=UTC), usegmt=True), 0.0),
        ("soon", None),
        ("-1", None),
        ("1.2.3", None),
        ("nan", None),
        ("²", None),
        ("", None),
    ],
)
def test_retry_after_header(header: str | None, expected: float | None) -> None:
    assert parse_retry_after(header, NOW) == expected


def test_delays_double_up_to_a_limit() -> None:
    delays = [LONGEST.delay(failures, None) for failures in range(1, 9)]
    assert delays[:3] == [FIRST_DELAY, 2 * FIRST_DELAY, 4 * FIRST_DELAY]
    assert delays[-1] == MAX_DELAY
    assert LONGEST.delay(10_000, None) == MAX_DELAY


def test_jitter_shortens_a_delay_by_at_most_half() -> None:
    assert SHORTEST.delay(1, None) == FIRST_DELAY / 2


def test_retry_after_is_lengthened_by_at_most_a_tenth() -> None:
    assert LONGEST.delay(1, 100.0) == 100.0 * (1.0 + RETRY_AFTER_JITTER)
    assert SHORTEST.delay(1, 100.0) == 100.0


def test_a_backoff_of_no_time() -> None:
    assert Backoff(0.0, 0.0).delay(3, None) == 0.0


@each(
    ("arguments", "error", "message"),
    [
        ({"first": True}, TypeError, "first=True"),
        ({"most": "8"}, TypeError, "most='8'"),
        ({"first": math.nan}, ValueError, "first=nan"),
        ({"most": math.inf}, ValueError, "most=inf"),
        ({"first": -0.1}, ValueError, "first=-0.1"),
        ({"uniform": 0.5}, TypeError, "uniform: float"),
    ],
)
def test_what_is_no_backoff(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        Backoff(**arguments)


@given(st.integers(1, 50), st.floats(0, 1e4))
def test_never_earlier_than_the_server_asked(failures: int, retry_after: float) -> None:
    assert Backoff().delay(failures, retry_after) >= retry_after


@pytest.mark.parametrize(("replicas", "expected"), [(1, 3), (3, 5), (4, 6), (50, 6)])
def test_a_request_has_one_attempt_for_each_of_a_few_replicas_and_some_more(replicas: int, expected: int) -> None:
    schedule = Schedule(2, LONGEST)
    attempts = 0
    while not schedule.exhausted(replicas):
        schedule.failed(f"{attempts % replicas}", 0.0, DOWN)
        attempts += 1
    assert attempts == expected


def test_two_servers_that_lost_a_device_with_a_request_are_enough() -> None:
    schedule = Schedule(5, LONGEST)
    lost = APIStatusError("", status=503, code="device_lost")
    schedule.failed("a", 0.0, lost)
    assert not schedule.exhausted(50)
    schedule.failed("b", 0.0, lost)
    assert schedule.exhausted(50)


def test_a_request_that_broke_four_connections_goes_back_to_those_servers() -> None:
    schedule = Schedule(5, LONGEST)
    for name in "abcdefgh":  # never reached: that says nothing about the request
        schedule.failed(name, 0.0, APIConnectionError(""))
    for name in "abc":
        schedule.failed(name, 0.0, APIConnectionError("", sent=True))
    assert schedule.only == frozenset()
    schedule.failed("d", 0.0, APIConnectionError("", sent=True))
    assert schedule.only == set("abcd")


def test_a_replica_is_asked_again_later_each_time() -> None:
    schedule = Schedule(5, LONGEST)
    for now, ready in ((0.0, FIRST_DELAY), (10.0, 10.0 + 2 * FIRST_DELAY)):
        schedule.failed("a", now, DOWN)
        assert schedule.ready == {"a": ready}


def test_from_the_fourth_failure_on_another_replica_is_not_asked_at_once_either() -> None:
    schedule = Schedule(5, LONGEST)
    for name in "abc":
        schedule.failed(name, 0.0, DOWN)
    assert schedule.elsewhere == -math.inf
    for name, now, elsewhere in (("d", 10.0, 10.0 + FIRST_DELAY), ("e", 20.0, 20.0 + 2 * FIRST_DELAY)):
        schedule.failed(name, now, DOWN)
        assert schedule.elsewhere == elsewhere


def test_another_replica_is_not_asked_before_one_that_was_asked_may_be_asked_again() -> None:
    schedule = Schedule(5, SHORTEST)
    for name, retry_after in (("a", 30.0), ("b", 20.0), ("c", 40.0), ("d", 50.0)):
        schedule.failed(name, 0.0, APIStatusError("", status=503, retry_after=retry_after))
    assert schedule.elsewhere == 20.0


def test_every_replica_waits_out_its_own_retry_after() -> None:
    schedule = Schedule(5, SHORTEST)
    schedule.failed("a", 0.0, APIStatusError("", status=503, retry_after=30.0))
    schedule.failed("b", 0.0, DOWN)
    assert schedule.ready == {"a": 30.0, "b": FIRST_DELAY / 2}


@pytest.mark.parametrize(
    "failure",
    [
        DOWN,
        APIStatusError("", status=503, code="draining"),
        APIStatusError("", status=503, code="not_ready"),
        *(APIStatusError("", status=status) for status in (502, 503, 504)),
    ],
)
def test_failures_of_a_replica(failure: JRMError) -> None:
    assert ejects(failure)


@pytest.mark.parametrize(
    "failure",
    [
        APIStatusError("", status=504, code="deadline_exceeded"),
        APIStatusError("", status=503, code="explain_disabled"),
        APIStatusError("", status=429, code="overloaded", retry_after=3.0),
        APIStatusError("", status=500, code="internal"),
        APIStatusError("", status=400, code="invalid_request"),
        APIResponseError("nonsense"),
    ],
)
def test_failures_of_a_request(failure: JRMError) -> None:
    assert not ejects(failure)
