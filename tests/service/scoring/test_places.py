"""Room in the queue: first come, first served, until there is none; then nobody is kept out by who is faster."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jrm_service.scoring.places import Places


def full_of(tenant: str, total: int = 100) -> Places:
    places = Places(total)
    places.take(tenant, total)
    return places


def free(places: Places, tenant: str, count: int) -> None:
    for _ in range(count):
        places.free(tenant)


def test_one_tenant_may_fill_the_queue() -> None:
    places = Places(100)
    places.take("A", 60)
    assert places.excess("A", 40, 0.0) == 0
    assert places.excess("A", 41, 0.0) == 1


def test_a_claim_keeps_room_from_who_holds_more_than_a_share() -> None:
    places = full_of("A")
    assert places.excess("B", 12, 0.0) == 12
    places.claim("B", 12, 0.0, until=10.0)
    free(places, "A", 12)
    assert places.excess("A", 1, 1.0) == 1
    assert places.excess("B", 12, 1.0) == 0


def test_a_claim_keeps_nothing_from_who_holds_less_than_a_share() -> None:
    places = full_of("A")
    places.claim("B", 12, 0.0, until=10.0)
    free(places, "A", 12)
    assert places.excess("C", 12, 1.0) == 0


def test_a_claim_runs_out() -> None:
    places = full_of("A")
    places.claim("B", 12, 0.0, until=10.0)
    free(places, "A", 12)
    assert places.excess("A", 12, 9.9) == 12
    assert places.excess("A", 12, 10.0) == 0


def test_a_claim_is_settled_by_coming_back() -> None:
    places = full_of("A")
    places.claim("B", 12, 0.0, until=10.0)
    free(places, "A", 20)
    places.take("B", 12)
    assert places.excess("A", 8, 1.0) == 0


def test_who_holds_more_than_a_share_claims_nothing() -> None:
    places = Places(100)
    places.take("A", 80)
    places.take("B", 20)
    places.claim("A", 10, 0.0, until=10.0)
    free(places, "A", 10)
    assert places.excess("B", 10, 1.0) == 0


def test_a_request_larger_than_a_share_gets_its_chance() -> None:
    places = full_of("A")
    places.claim("B", 100, 0.0, until=10.0)
    free(places, "A", 99)
    assert places.excess("A", 1, 1.0) > 0
    free(places, "A", 1)
    assert places.excess("B", 100, 1.0) == 0


def test_of_two_large_claims_the_older_is_met_first() -> None:
    places = full_of("A")
    places.claim("B", 100, 0.0, until=10.0)
    places.claim("C", 100, 1.0, until=10.0)
    free(places, "A", 100)
    assert places.excess("C", 100, 2.0) > 0
    assert places.excess("A", 1, 2.0) > 0
    assert places.excess("B", 100, 2.0) == 0


def test_a_queue_without_places_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 place, got 0"):
        Places(0)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 12))), st.integers(1, 30))
@settings(deadline=None)
def test_a_single_tenant_sees_nothing_but_the_total(moves: list[tuple[bool, int]], total: int) -> None:
    places = Places(total)
    taken = 0
    for number, (arrives, count) in enumerate(moves):
        if arrives:
            assert places.excess("A", count, float(number)) == max(0, taken + count - total)
            if taken + count <= total:
                places.take("A", count)
                taken += count
            else:
                places.claim("A", count, float(number), until=number + 100.0)
        elif taken:
            places.free("A")
            taken -= 1
        assert places.taken == taken


@given(
    total=st.integers(20, 60),
    wanted=st.integers(1, 20),
    greedy=st.lists(st.integers(1, 8), min_size=1, max_size=6),
)
@settings(deadline=None)
def test_a_tenant_gets_in_as_soon_as_what_it_lacked_has_become_free(total: int, wanted: int, greedy: list[int]) -> None:
    """However quickly another one, which fills the queue, asks for each place that becomes free."""
    places = Places(total)
    held: Counter[str] = Counter()

    def refill(now: float) -> None:
        for count in greedy * total:
            if places.excess("greedy", count, now) == 0:
                places.take("greedy", count)
                held["greedy"] += count

    refill(0.0)
    lacking = places.excess("small", wanted, 0.0)
    if lacking:
        places.claim("small", wanted, 0.0, until=1000.0)
    for now in range(1, lacking + 1):
        places.free("greedy")
        refill(float(now))
    assert places.excess("small", wanted, 999.0) == 0
