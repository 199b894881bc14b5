"""A caller who waits as it was told gets in; one who does not come back holds nobody up for long."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jrm_service.scoring.promises import Promises


def test_newcomers_wait_for_who_was_told_before() -> None:
    promises = Promises(100)
    promises.make("", "a", 12, 3.0, 0.0)
    assert promises.ahead("", "b", 1.0) == promises.kept("", "b", 1.0) == 12


def test_whose_time_has_come_waits_for_nobody() -> None:
    promises = Promises(100)
    promises.make("", "a", 12, 3.0, 0.0)
    promises.make("", "b", 12, 5.0, 0.0)
    assert promises.ahead("", "a", 2.9) == 12
    assert promises.ahead("", "a", 3.0) == 0


def test_at_most_half_of_the_queue_is_kept_for_the_absent() -> None:
    promises = Promises(100)
    for name in "abcdef":
        promises.make("", name, 12, 3.0, 0.0)
    assert promises.kept("", "new", 0.0) == 50
    assert promises.ahead("", "new", 0.0) == 72


def test_a_promise_ends_soon_after_its_time() -> None:
    promises = Promises(100)
    promises.make("", "a", 12, 10.0, 0.0)
    assert promises.ahead("", "b", 14.0) == 12  # told 10 s, it may come a tenth later
    assert promises.ahead("", "b", 15.0) == 0


def test_coming_too_early_costs_nothing_and_gains_nothing() -> None:
    promises = Promises(100)
    assert promises.make("", "a", 12, 10.0, 0.0) == 10.0
    assert promises.make("", "a", 12, 30.0, 4.0) == 6.0
    assert promises.ahead("", "b", 4.0) == 12
    assert promises.ahead("", "a", 10.0) == 0


def test_a_promise_that_is_kept_is_over() -> None:
    promises = Promises(100)
    promises.make("", "a", 12, 3.0, 0.0)
    promises.settle("", "a")
    promises.settle("", "a")
    assert promises.ahead("", "b", 1.0) == 0


def test_tenants_have_promises_of_their_own() -> None:
    promises = Promises(100)
    promises.make("A", "x", 12, 3.0, 0.0)
    assert promises.ahead("B", "x", 1.0) == 0
    assert promises.ahead("B", "x", 3.0) == 0


def test_without_an_id_nothing_is_kept() -> None:
    promises = Promises(100)
    assert promises.make("", "", 12, 3.0, 0.0) == 3.0
    assert promises.ahead("", "b", 1.0) == 0


@given(
    st.lists(
        st.tuples(
            st.sampled_from("AB"),
            st.sampled_from(["", "x", "y", "z"]),
            st.integers(1, 40),
            st.floats(0, 60),
            st.floats(0, 5),
            st.booleans(),
        ),
        max_size=40,
    )
)
def test_nothing_is_kept_for_ever(steps: list[tuple[str, str, int, float, float, bool]]) -> None:
    promises, now = Promises(64), 0.0
    for tenant, name, places, seconds, later, settled in steps:
        now += later
        assert 0 <= promises.make(tenant, name, places, seconds, now) <= seconds
        if settled:
            promises.settle(tenant, name)
        assert 0 <= promises.kept(tenant, name, now) <= 32
    assert promises.ahead("A", "new", now + 75.0) == promises.ahead("B", "new", now + 75.0) == 0
