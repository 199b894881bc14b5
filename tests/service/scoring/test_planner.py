"""The planner's promises, by example and by property."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jrm_service.scoring.planner import Planner, unshared_tokens
from jrm_service.scoring.types import Candidate
from service.scoring.support import candidate


@dataclass(frozen=True, eq=False)
class Entry:
    request: int
    candidate: Candidate
    tenant: str = ""


def entry(request: int, tokens: int = 1, source: str | None = None, tenant: str = "") -> Entry:
    return Entry(request, candidate(tokens, source), tenant)


def drain(planner: Planner[Entry]) -> list[list[Entry]]:
    batches = []
    while batch := planner.take():
        batches.append(batch)
    return batches


def fill(planner: Planner[Entry], entries: Sequence[Entry]) -> Sequence[Entry]:
    for one in entries:
        planner.add(one)
    return entries


def tokens(batch: Sequence[Entry]) -> int:
    return unshared_tokens([one.candidate for one in batch])


waiting = st.lists(st.builds(entry, st.integers(0, 4), st.integers(1, 30), st.sampled_from("abc")), max_size=40)


def test_nothing_waits_nothing_is_taken() -> None:
    assert Planner[Entry](10).take() == []


def test_single_requests_are_served_first_come_first_served() -> None:
    planner = Planner[Entry](3)
    entries = fill(planner, [entry(request) for request in (5, 1, 9, 2, 7)])
    assert drain(planner) == [list(entries[:3]), list(entries[3:])]


def test_whatever_shares_the_leads_source_comes_next() -> None:
    planner = Planner[Entry](3)
    a, b, c, d = fill(planner, [entry(1, source="x"), entry(1, source="y"), entry(2, source="z"), entry(3, source="x")])
    assert drain(planner) == [[a, d, b], [c]]


def test_a_candidate_above_the_budget_goes_alone() -> None:
    planner = Planner[Entry](10)
    small, huge, last = fill(planner, [entry(1, 4), entry(2, 99), entry(3, 4)])
    assert drain(planner) == [[small], [huge], [last]]


def test_a_large_candidate_is_not_overtaken_by_small_ones_that_would_fit() -> None:
    planner = Planner[Entry](10)
    first, large, small = fill(planner, [entry(1, 6), entry(2, 8), entry(3, 1)])
    assert drain(planner) == [[first], [large, small]]


def test_a_single_passes_a_caller_with_a_thousand_of_one_source() -> None:
    planner = Planner[Entry](10)
    fill(planner, [entry(1, source="x") for _ in range(1000)])
    planner.take()
    single = entry(2)
    planner.add(single)
    assert planner.take()[0] is single


def test_two_large_callers_take_turns() -> None:
    planner = Planner[Entry](4)
    fill(planner, [entry(request, source=str(request)) for request in (1, 2) for _ in range(12)])
    assert [batch[0].request for batch in drain(planner)] == [1, 2, 1, 2, 1, 2]


def test_a_turn_pays_for_the_mates_that_it_pulls_in() -> None:
    planner = Planner[Entry](3)
    fill(planner, [entry(1, source="x"), entry(1, source="y"), entry(2)])
    fill(planner, [entry(request, source=source) for request in (3, 4) for source in "xy"])
    assert 2 in {one.request for one in planner.take() + planner.take()}


def test_only_full_leaves_a_batch_that_arrivals_could_still_join() -> None:
    planner = Planner[Entry](3)
    fill(planner, [entry(1), entry(2)])
    assert planner.take(only_full=True) == []
    fill(planner, [entry(3)])
    assert len(planner.take(only_full=True)) == 3


def test_only_full_takes_a_batch_that_the_next_one_does_not_fit_into() -> None:
    planner = Planner[Entry](10)
    first, _ = fill(planner, [entry(1, 9), entry(2, 9)])
    assert planner.take(only_full=True) == [first]


def test_a_cost_that_shares_sources_makes_longer_batches() -> None:
    def shared(candidates: Sequence[Candidate]) -> int:
        return len(candidates) + 10 * len({one.source_keys for one in candidates})

    planner = Planner[Entry](20, shared)
    fill(planner, [entry(1, source="x") for _ in range(9)])
    assert planner.take(only_full=True) == []  # 19 tokens, and 99 if nothing were shared
    fill(planner, [entry(1, source="x") for _ in range(6)])
    assert [len(batch) for batch in drain(planner)] == [10, 5]


def test_an_expensive_cost_is_asked_about_batches_a_few_times_only() -> None:
    calls = 0

    def counted(candidates: Sequence[Candidate]) -> int:
        nonlocal calls
        calls += len(candidates) > 1
        return len(candidates)

    planner = Planner[Entry](300, counted)
    fill(planner, [entry(1) for _ in range(1000)])
    assert len(planner.take()) == 300
    assert calls < 25


def test_a_discarded_entry_never_goes() -> None:
    planner = Planner[Entry](10)
    a, b, c = fill(planner, [entry(1, source="x"), entry(1, source="x"), entry(2)])
    planner.discard(a)
    planner.discard(a)
    assert drain(planner) == [[b, c]]


def test_leaving_at_the_front_ends_the_turn() -> None:
    planner = Planner[Entry](4)
    leaving = fill(planner, [entry(1) for _ in range(3)])
    planner.take()  # request 1 has used 3 of its 4 tokens, and has nothing left
    leaving = fill(planner, [entry(1)])
    fill(planner, [entry(2) for _ in range(4)])
    planner.discard(leaving[0])
    assert len(planner.take()) == 4


def test_clear_gives_back_everything() -> None:
    planner = Planner[Entry](4)
    entries = fill(planner, [entry(1), entry(2), entry(1)])
    assert set(planner.clear()) == set(entries)
    assert len(planner) == 0
    assert planner.take() == []


def test_a_budget_below_one_token_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 token, got 0"):
        Planner[Entry](0)


@given(waiting, st.integers(1, 60))
def test_the_budget_is_kept_and_nothing_is_lost_or_doubled(entries: list[Entry], budget: int) -> None:
    planner = Planner[Entry](budget)
    fill(planner, entries)
    batches = drain(planner)
    assert all(len(batch) == 1 or tokens(batch) <= budget for batch in batches)
    served = [one for batch in batches for one in batch]
    assert len(served) == len(entries)
    assert set(served) == set(entries)
    assert len(planner) == 0


@given(waiting, st.integers(1, 60))
def test_no_batch_is_cut_before_the_budget(entries: list[Entry], budget: int) -> None:
    planner = Planner[Entry](budget)
    fill(planner, entries)
    batches = drain(planner)
    for number, batch in enumerate(batches[:-1]):
        assert tokens(batch) + max(one.candidate.tokens for later in batches[number + 1 :] for one in later) > budget


@given(waiting, st.integers(1, 60), st.data())
def test_only_full_takes_the_same_batch_or_none(entries: list[Entry], budget: int, data: st.DataObject) -> None:
    patient, eager = Planner[Entry](budget), Planner[Entry](budget)
    for planner in (patient, eager):
        fill(planner, entries)
    left = list(entries)
    while left:
        gone = data.draw(st.sampled_from(left), label="leaves")
        for planner in (patient, eager):
            planner.discard(gone)
        left.remove(gone)
        full = tokens(left) >= budget
        batch = eager.take()
        assert patient.take(only_full=True) == (batch if full else [])
        if not full:
            return
        left = [one for one in left if one not in batch]


@given(waiting, st.integers(1, 60))
def test_the_same_history_gives_the_same_batches(entries: list[Entry], budget: int) -> None:
    first, second = Planner[Entry](budget), Planner[Entry](budget)
    fill(first, entries)
    fill(second, entries)
    assert drain(first) == drain(second)


@given(waiting, st.integers(1, 60))
def test_mates_follow_the_lead_before_anything_else(entries: list[Entry], budget: int) -> None:
    planner = Planner[Entry](budget)
    fill(planner, entries)
    batch = planner.take()
    if not batch:
        return
    source = batch[0].candidate.source_keys
    mates = [one.candidate.source_keys == source for one in batch]
    assert mates == sorted(mates, reverse=True)
    left = [one for one in entries if one not in batch and one.candidate.source_keys == source]
    assert all(mates) or not left


def test_candidates_without_sources_share_none() -> None:
    """Otherwise the first request's turn would take the candidates of all the others along."""
    planner = Planner[Entry](100)
    none = [Entry(request=n % 2, candidate=replace(candidate(30), sources=())) for n in range(8)]
    fill(planner, none)
    assert [[entry.request for entry in batch] for batch in drain(planner)] == [[0, 0, 0], [0, 1, 1], [1, 1]]


@given(waiting, st.integers(1, 60))
def test_candidates_of_one_request_and_source_go_by_age(entries: list[Entry], budget: int) -> None:
    planner = Planner[Entry](budget)
    fill(planner, entries)
    served = [one for batch in drain(planner) for one in batch]
    for request in range(5):
        for source in (b"a", b"b", b"c"):
            chosen = [one for one in entries if one.request == request and one.candidate.source_keys == (source,)]
            assert [one for one in served if one in set(chosen)] == chosen


@given(
    ahead=st.lists(st.integers(1, 30), max_size=5),
    later=st.lists(st.lists(st.builds(entry, st.integers(0, 9), st.just(1), st.sampled_from("abcde")), max_size=12)),
    budget=st.integers(1, 8),
    sources=st.sampled_from(["a", "abcde"]),
)
def test_a_request_waits_for_at_most_one_batch_per_request_ahead(
    ahead: list[int], later: list[list[Entry]], budget: int, sources: str
) -> None:
    """Whatever arrives later, and however much the requests ahead still have."""
    planner = Planner[Entry](budget)
    for request, size in enumerate(ahead):
        fill(planner, [entry(request, source=sources[number % len(sources)]) for number in range(size)])
    mine = entry(99)
    planner.add(mine)
    arrivals = iter(later)
    for _ in range(len(ahead)):
        if mine in planner.take():
            return
        fill(planner, next(arrivals, []))
    assert mine in planner.take()


@given(waiting, st.data())
def test_entries_that_leave_at_any_moment_leave_no_trace(entries: list[Entry], data: st.DataObject) -> None:
    planner = Planner[Entry](20)
    expected = set(entries)
    fill(planner, entries)
    while len(planner):
        for leaving in data.draw(st.lists(st.sampled_from(entries), max_size=4), label="leaving"):
            planner.discard(leaving)
            expected.discard(leaving)
        batch = planner.take()
        assert set(batch) <= expected
        expected -= set(batch)
    assert not expected
