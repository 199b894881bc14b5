"""Tenants share the devices: nobody starves, nothing idles, and one tenant alone is served as if there were none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jrm_service.scoring.planner import Planner
from service.scoring.test_planner import Entry, drain, entry, fill, tokens

TENANTS = "ABC"


def test_a_tenant_with_ten_thousand_candidates_delays_another_by_one_batch() -> None:
    planner = Planner[Entry](100)
    fill(planner, [entry(number // 50, tenant="greedy") for number in range(10_000)])
    assert {one.tenant for one in planner.take()} == {"greedy"}
    mine = fill(planner, [entry(1000, tenant="small") for _ in range(12)])
    fill(planner, [entry(2000 + number, tenant="greedy") for number in range(100)])
    assert planner.take()[:12] == list(mine)


def test_many_requests_are_no_more_than_one() -> None:
    """What counts is whose they are, not how they are cut."""
    planner = Planner[Entry](4)
    fill(planner, [entry(number, tenant="many") for number in range(40)])
    fill(planner, [entry(100, tenant="one") for _ in range(40)])
    served = Counter(one.tenant for _ in range(10) for one in planner.take())
    assert served == {"many": 20, "one": 20}


def test_a_turn_goes_on_in_the_next_batch() -> None:
    planner = Planner[Entry](10)
    first, second, other = fill(planner, [entry(1, 6, tenant="A"), entry(1, 6, tenant="A"), entry(2, 6, tenant="B")])
    assert drain(planner) == [[first], [second], [other]]


def test_grouping_by_source_stays_within_a_tenant() -> None:
    """Else a tenant with many edits of a popular source would be served in everybody's turn."""
    planner = Planner[Entry](4)
    lead, other, mate = fill(
        planner,
        [entry(1, source="x", tenant="A"), entry(1, source="y", tenant="A"), entry(2, source="x", tenant="A")],
    )
    theirs = fill(planner, [entry(3, source="x", tenant="B")])
    assert planner.take() == [lead, mate, other, *theirs]


def test_leaving_ends_a_tenants_turn() -> None:
    planner = Planner[Entry](4)
    fill(planner, [entry(1, tenant="A") for _ in range(3)])
    planner.take()
    [leaving] = fill(planner, [entry(1, tenant="A")])
    fill(planner, [entry(2, tenant="B") for _ in range(4)])
    planner.discard(leaving)
    assert [one.tenant for one in planner.take()] == ["B"] * 4


@pytest.mark.parametrize("tenants", ["AAA", "ABC"])  # three requests of one tenant take turns as three tenants do
def test_when_all_of_the_first_leaves_the_next_has_a_whole_turn(tenants: str) -> None:
    planner = Planner[Entry](4)
    first, leaving = fill(planner, [entry(0, 3, tenant=tenants[0]) for _ in range(2)])
    fill(planner, [entry(request, tenant=tenants[request]) for request in (1, 2) for _ in range(4)])
    assert planner.take() == [first]  # 3 of the 4 tokens of its turn
    planner.discard(leaving)
    assert [one.request for one in planner.take()] == [1, 1, 1, 1]


@pytest.mark.parametrize("tenants", ["AAA", "ABC"])
def test_when_all_of_the_first_was_taken_the_next_has_a_whole_turn(tenants: str) -> None:
    planner = Planner[Entry](4)
    first, *second = fill(
        planner, [entry(request, size, tenant=tenants[request]) for request, size in ((0, 3), (1, 2), (1, 1), (1, 1))]
    )
    fill(planner, [entry(2, tenant=tenants[2]) for _ in range(4)])
    assert planner.take() == [first]
    assert planner.take() == second


@pytest.mark.parametrize("tenants", ["AAA", "ABC"])
def test_a_batch_of_many_turns_has_them_in_order(tenants: str) -> None:
    """All of it costs as much as one, so it is in one batch; a turn is two of them."""
    planner = Planner[Entry](2, lambda _candidates: 1)
    for request, count in enumerate((1, 3, 3)):
        fill(planner, [entry(request, source="xyz"[request], tenant=tenants[request]) for _ in range(count)])
    assert [one.request for one in planner.take()] == [0, 1, 1, 2, 2, 1, 2]


@pytest.mark.parametrize("tenants", ["AAA", "ABC"])
def test_when_all_of_another_leaves_the_turn_goes_on(tenants: str) -> None:
    planner = Planner[Entry](4)
    first, second, _ = fill(planner, [entry(0, size, tenant=tenants[0]) for size in (3, 2, 1)])
    [leaving] = fill(planner, [entry(1, tenant=tenants[1])])
    later = fill(planner, [entry(2, tenant=tenants[2]) for _ in range(4)])
    assert planner.take() == [first]
    planner.discard(leaving)
    assert planner.take() == [second, *later[:2]]


def test_clear_gives_back_every_tenants_entries() -> None:
    planner = Planner[Entry](4)
    entries = fill(planner, [entry(number, tenant=tenant) for number, tenant in enumerate("ABA")])
    assert set(planner.clear()) == set(entries)
    assert planner.take() == []


def test_after_clear_a_whole_turn_begins() -> None:
    planner = Planner[Entry](4)
    fill(planner, [entry(1, tenant="A") for _ in range(8)])
    planner.take()
    planner.clear()
    fill(planner, [entry(number, tenant=tenant) for number, tenant in enumerate("AAAABBBB")])
    assert [one.tenant for one in planner.take()] == ["A"] * 4


of_tenants = st.lists(
    st.tuples(st.sampled_from(TENANTS), st.integers(0, 2), st.integers(1, 12), st.sampled_from("xyz")), max_size=40
).map(lambda rows: [entry(10 * TENANTS.index(t) + r, size, source, t) for t, r, size, source in rows])


@given(of_tenants, st.integers(1, 40))
@settings(deadline=None)
def test_nothing_is_lost_or_doubled_and_no_batch_is_cut_before_the_budget(entries: list[Entry], budget: int) -> None:
    planner = Planner[Entry](budget)
    fill(planner, entries)
    batches = drain(planner)
    served = [one for batch in batches for one in batch]
    assert len(served) == len(entries)
    assert set(served) == set(entries)
    for number, batch in enumerate(batches):
        assert len(batch) == 1 or tokens(batch) <= budget
        later = [one.candidate.tokens for rest in batches[number + 1 :] for one in rest]
        assert not later or tokens(batch) + max(later) > budget


class OneLine:
    """The rule for a single tenant, written plainly: requests take turns, and nobody's tenant is looked at."""

    def __init__(self, budget: int) -> None:
        self.budget, self.spent = budget, 0
        self.line: list[int] = []
        self.waiting: list[Entry] = []

    def add(self, one: Entry) -> None:
        self.waiting.append(one)
        if one.request not in self.line:
            self.line.append(one.request)

    def take(self) -> list[Entry]:
        batch: list[Entry] = []
        line, spent = list(self.line), self.spent
        for one, line_then, spent_then in self.walk(line, spent):
            if batch and tokens([*batch, one]) > self.budget:
                break
            batch.append(one)
            self.line, self.spent = line_then, spent_then
        self.waiting = [one for one in self.waiting if one not in batch]
        left = {one.request for one in self.waiting}
        if self.line and self.line[0] not in left:
            self.spent = 0
        self.line = [request for request in self.line if request in left]
        return batch

    def walk(self, line: list[int], spent: int) -> Iterator[tuple[Entry, list[int], int]]:
        left = list(self.waiting)
        while left:
            if spent >= self.budget:
                line, spent = [*line[1:], line[0]], 0
            lead = next((one for one in left if one.request == line[0]), None)
            if lead is None:
                line, spent = line[1:], 0
                continue
            source = lead.candidate.source_keys
            for one in [lead, *(one for one in left if one.candidate.source_keys == source and one is not lead)]:
                left.remove(one)
                spent += one.candidate.tokens
                yield one, line, spent
                if spent >= self.budget:
                    break


@given(of_tenants, st.integers(1, 40), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_a_tenant_alone_is_served_as_if_there_were_no_tenants(
    entries: list[Entry], budget: int, random: Random
) -> None:
    planner, plain = Planner[Entry](budget), OneLine(budget)
    for one in entries:
        alone = Entry(one.request, one.candidate, "alone")
        planner.add(alone)
        plain.add(alone)
        if random.random() < 0.2:
            assert planner.take() == plain.take()
    while len(planner):
        assert planner.take() == plain.take()
    assert plain.take() == []


@given(
    ahead=st.lists(st.integers(1, 30), max_size=5),
    later=st.lists(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), max_size=12)),
    budget=st.integers(1, 8),
    sources=st.sampled_from(["a", "abcde"]),
)
@settings(deadline=None)
def test_a_tenant_waits_for_at_most_one_batch_per_tenant_ahead(
    ahead: list[int], later: list[list[tuple[int, int]]], budget: int, sources: str
) -> None:
    """Whatever arrives later, in however many requests, and however much the tenants ahead still have."""
    planner = Planner[Entry](budget)
    for tenant, size in enumerate(ahead):
        for number in range(size):
            source = sources[number % len(sources)]
            planner.add(entry(100 * tenant + number % 3, source=source, tenant=str(tenant)))
    mine = entry(9999, tenant="mine")
    planner.add(mine)
    arrivals = iter(later)
    for _ in range(len(ahead)):
        if mine in planner.take():
            return
        for tenant, request in next(arrivals, []):
            planner.add(entry(100 * tenant + request, source="a", tenant=str(tenant)))
    assert mine in planner.take()


@pytest.mark.parametrize("tenants", [2, 3, 5])
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_tenants_that_always_wait_get_equal_shares(tenants: int, seed: int) -> None:
    """In tokens, within one turn of each other, whatever their candidates cost and share."""
    random = Random(seed)
    budget, largest = 20, 7
    planner = Planner[Entry](budget)
    served: Counter[str] = Counter({str(tenant): 0 for tenant in range(tenants)})
    waiting = dict.fromkeys(served, 0)
    for _ in range(60):
        for tenant in served:
            while waiting[tenant] < 3 * budget:
                one = entry(random.randrange(4), random.randint(1, largest), random.choice("xyz"), tenant)
                planner.add(one)
                waiting[tenant] += one.candidate.tokens
        for one in planner.take():
            served[one.tenant] += one.candidate.tokens
            waiting[one.tenant] -= one.candidate.tokens
    turns = 60 // tenants + 1
    assert max(served.values()) - min(served.values()) <= budget + largest * turns
