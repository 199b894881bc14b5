from hypothesis import given
from hypothesis import strategies as st

from jrm_client.batching import Candidate, Limits, plan

ROOMY = Limits()


def test_groups_are_pairs_with_equal_source_and_instruction_wherever_they_stand() -> None:
    candidates = [Candidate(("s",), "a", "red"), Candidate(("s",), "b", "blue"), Candidate(("s",), "c", "red")]
    [batch] = plan(candidates, dict.fromkeys("sabc", 10), ROOMY)
    assert [(g.instruction, g.edits, g.positions) for g in batch.groups] == [
        ("red", ("a", "c"), (0, 2)),
        ("blue", ("b",), (1,)),
    ]
    assert batch.images == ("s", "a", "c", "b")


def test_a_group_is_not_torn_to_fill_a_request() -> None:
    candidates = [Candidate((s,), f"{s}{k}", "i") for s in "st" for k in range(3)]
    sizes = dict.fromkeys(["s", "t", *(c.edited for c in candidates)], 1000)
    batches = plan(candidates, sizes, Limits(image_bytes=7000))
    assert [[len(g.edits) for g in b.groups] for b in batches] == [[3], [3]]


def test_a_group_that_is_too_large_alone_is_torn() -> None:
    candidates = [Candidate(("s",), f"e{k}", "i") for k in range(5)]
    sizes = dict.fromkeys(["s", *(c.edited for c in candidates)], 1000)
    batches = plan(candidates, sizes, Limits(image_bytes=4000))
    assert [g.positions for b in batches for g in b.groups] == [(0, 1), (2, 3), (4,)]


def test_a_shared_source_counts_once() -> None:
    candidates = [Candidate(("s",), "a", "red"), Candidate(("s",), "b", "blue")]
    batches = plan(candidates, {"s": 100_000, "a": 10, "b": 10}, Limits(image_bytes=102_000))
    assert len(batches) == 1


def test_a_group_has_the_same_sources_in_the_same_order() -> None:
    sources = [("s", "t"), ("t", "s"), ("s", "t"), (), ("s",), (), ("s", "s")]
    candidates = [Candidate(given, "e", "i") for given in sources]
    [batch] = plan(candidates, dict.fromkeys("ste", 10), ROOMY)
    assert [(g.sources, g.positions) for g in batch.groups] == [
        (("s", "t"), (0, 2)),
        (("t", "s"), (1,)),
        ((), (3, 5)),
        (("s",), (4,)),
        (("s", "s"), (6,)),
    ]
    assert batch.images == ("s", "t", "e")


def test_every_piece_of_a_torn_group_has_all_its_sources() -> None:
    candidates = [Candidate(("s", "t", "s"), f"e{k}", "i") for k in range(3)]
    sizes = dict.fromkeys(["s", "t", *(c.edited for c in candidates)], 1000)
    batches = plan(candidates, sizes, Limits(image_bytes=5100))
    assert [(g.sources, g.positions) for b in batches for g in b.groups] == [
        (("s", "t", "s"), (0, 1)),
        (("s", "t", "s"), (2,)),
    ]


def test_the_number_of_candidates_is_limited() -> None:
    candidates = [Candidate(("s",), "e", "i")] * 2500
    batches = plan(candidates, {"s": 1, "e": 1}, ROOMY)
    assert [len(b.groups[0].edits) for b in batches] == [240] * 10 + [100]


def test_the_target_spreads_groups_but_tears_none() -> None:
    candidates = [Candidate((s,), "e", "i") for s in "abcd" for _ in range(3)]
    batches = plan(candidates, dict.fromkeys("abcde", 1), Limits(target_candidates=6))
    assert [[g.sources for g in b.groups] for b in batches] == [[("a",), ("b",)], [("c",), ("d",)]]
    assert len(plan(candidates[:3], dict.fromkeys("abcde", 1), Limits(target_candidates=1))) == 1


def test_long_instructions_are_spread_too() -> None:
    candidates = [Candidate(("s",), "e", f"{k}" + "é" * 150_000) for k in range(3)]
    assert len(plan(candidates, {"s": 1, "e": 1}, ROOMY)) == 3


def test_nothing_to_plan() -> None:
    assert plan([], {}, ROOMY) == []


names = st.sampled_from("abcdefgh")
limits = st.builds(
    Limits,
    image_bytes=st.integers(1, 5000),
    text_bytes=st.integers(1, 2000),
    candidates=st.integers(1, 5),
    target_candidates=st.integers(1, 5),
)


@given(
    st.lists(st.builds(Candidate, st.lists(names, max_size=3).map(tuple), names, st.sampled_from(["red", "blue"]))),
    limits,
    st.integers(0, 2000),
)
def test_every_candidate_is_sent_once_with_its_own_images(
    candidates: list[Candidate], limits: Limits, size: int
) -> None:
    batches = plan(candidates, dict.fromkeys("abcdefgh", size), limits)
    sent = {
        position: Candidate(group.sources, edited, group.instruction)
        for batch in batches
        for group in batch.groups
        for position, edited in zip(group.positions, group.edits, strict=True)
    }
    assert sum(len(g.edits) for b in batches for g in b.groups) == len(candidates)
    assert [sent[position] for position in range(len(candidates))] == candidates
    for batch in batches:
        assert sum(len(g.edits) for g in batch.groups) <= limits.candidates
        load = sum(size for _ in batch.images)
        assert load <= limits.image_bytes or sum(len(g.edits) for g in batch.groups) == 1
