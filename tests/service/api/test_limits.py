"""How much a key may ask for: candidates per minute and requests at once, on a clock by hand."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jrm_service.api.keys import Key
from jrm_service.api.limits import LocalQuota, RequestSlots, TokenBucket, charged
from jrm_service.errors import Draining, Overloaded, RateLimited

LIMITED = Key("limited", b"", requests=2, candidates_per_minute=60)
OTHER = Key("other", b"", candidates_per_minute=60)
FREE = Key("free", b"")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


def spend(quota: LocalQuota, key: Key | None, candidates: int, error: Exception | None = None) -> None:
    async def run() -> None:
        async with charged(quota, key, candidates):
            if error is not None:
                raise error

    asyncio.run(run())


# --- candidates per minute ---


def test_a_minutes_worth_at_once_and_then_the_rate():
    bucket = TokenBucket(60, 0.0)
    assert bucket.spend(60, 60, 0.0) == 0.0
    assert bucket.spend(12, 60, 0.0) == 12.0
    assert bucket.spend(12, 60, 11.0) == pytest.approx(1.0)
    assert bucket.spend(12, 60, 12.0) == 0.0


def test_more_than_a_minutes_worth_passes_and_is_paid_for_afterwards():
    bucket = TokenBucket(60, 0.0)
    assert bucket.spend(180, 60, 0.0) == 0.0
    assert bucket.spend(1, 60, 0.0) == pytest.approx(121.0)
    assert bucket.spend(1, 60, 121.0) == 0.0


def test_an_idle_hour_saves_up_no_more_than_a_minutes_worth():
    bucket = TokenBucket(60, 0.0)
    bucket.spend(60, 60, 0.0)
    assert bucket.spend(60, 60, 3600.0) == 0.0
    assert bucket.spend(1, 60, 3600.0) == pytest.approx(1.0)


def test_a_clock_that_steps_back_gives_nothing():
    bucket = TokenBucket(60, 100.0)
    bucket.spend(60, 60, 100.0)
    assert bucket.spend(1, 60, 50.0) == pytest.approx(1.0)


@given(
    st.lists(st.tuples(st.floats(0, 30), st.integers(1, 200)), max_size=60),
    st.integers(1, 100),
)
@settings(deadline=None)
def test_over_time_no_more_than_the_rate_passes(arrivals, per_minute):
    """Within one request's excess: a request of any size can pass, but only when nothing is owed."""
    bucket, now, granted, largest = TokenBucket(per_minute, 0.0), 0.0, 0, 0
    for wait, candidates in arrivals:
        now += wait
        if bucket.spend(candidates, per_minute, now) == 0.0:
            granted += candidates
            largest = max(largest, candidates)
    assert granted <= per_minute * (1 + now / 60.0) + max(0, largest - per_minute) + 1e-3


@given(st.integers(1, 10_000), st.integers(1, 10_000), st.integers(1, 10_000))
@settings(deadline=None)
def test_who_comes_back_when_told_to_is_let_in(first, second, per_minute):
    bucket = TokenBucket(per_minute, 5.0)
    bucket.spend(first, per_minute, 5.0)
    seconds = bucket.spend(second, per_minute, 5.0)
    assert seconds == 0.0 or bucket.spend(second, per_minute, 5.0 + seconds) == 0.0


def test_each_key_has_its_own_quota(clock):
    quota = LocalQuota(clock)
    spend(quota, LIMITED, 60)
    spend(quota, OTHER, 60)
    with pytest.raises(RateLimited) as refused:
        spend(quota, LIMITED, 30)
    assert refused.value.retry_after == pytest.approx(30.0)
    clock.now += 30.0
    spend(quota, LIMITED, 30)


def test_a_key_without_a_quota_and_no_key_at_all(clock):
    for key in (FREE, None):
        spend(LocalQuota(clock), key, 10**9)


def test_a_request_that_is_refused_costs_nothing(clock):
    quota = LocalQuota(clock)
    with pytest.raises(Draining):
        spend(quota, LIMITED, 60, Draining("the server is shutting down"))
    spend(quota, LIMITED, 60)


def test_a_request_that_failed_otherwise_was_work(clock):
    quota = LocalQuota(clock)
    with pytest.raises(ZeroDivisionError):
        spend(quota, LIMITED, 60, ZeroDivisionError())
    with pytest.raises(RateLimited):
        spend(quota, LIMITED, 60)


# --- requests at once ---


def test_a_key_at_its_limit_is_refused_and_others_are_not(clock):
    slots = RequestSlots(100, clock)
    refused = pytest.raises(RateLimited, match="2 requests at once")
    with slots.hold(LIMITED), slots.hold(LIMITED), slots.hold(FREE), slots.hold(None), refused, slots.hold(LIMITED):
        pass
    with slots.hold(LIMITED):
        pass


def test_all_callers_share_the_servers_limit(clock):
    slots = RequestSlots(2, clock)
    with slots.hold(FREE), slots.hold(None), pytest.raises(Overloaded), slots.hold(OTHER):
        pass
    with slots.hold(OTHER):
        pass


def test_a_request_that_raises_gives_its_slot_back(clock):
    slots = RequestSlots(1, clock)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), slots.hold(None):
            raise ZeroDivisionError


def test_retry_after_follows_the_length_of_the_last_requests(clock):
    slots = RequestSlots(100, clock)
    for _ in range(5):
        with slots.hold(LIMITED):
            clock.now += 20.0
    with slots.hold(LIMITED), slots.hold(LIMITED), pytest.raises(RateLimited) as refused, slots.hold(LIMITED):
        pass
    assert refused.value.retry_after == pytest.approx(10.0)  # two of 20 s run: one of them ends after 10 s


def test_retry_after_is_given_before_any_measurement(clock):
    slots = RequestSlots(1, clock)
    with slots.hold(None), pytest.raises(Overloaded) as refused, slots.hold(None):
        pass
    assert refused.value.retry_after == 1.0
