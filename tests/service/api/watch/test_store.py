"""The groups that are kept: never too many, never too large, the newest ones, with all of their pictures."""

from hypothesis import given
from hypothesis import strategies as st

from jrm_service.api.watch.pictures import Picture
from jrm_service.api.watch.store import RecentGroups

PICTURES = [Picture(f"{n:032x}", bytes(10 * n), "image/png") for n in range(6)]
GROUPS = st.lists(st.tuples(st.integers(0, 60), st.lists(st.sampled_from(PICTURES), max_size=4)), max_size=40)


def kept(store: RecentGroups) -> list[int]:
    numbers, after = [], 0
    while (group := store.after(after)) is not None:
        after = group.number
        numbers.append(after)
    return numbers


@given(GROUPS, st.integers(1, 8), st.integers(20, 200))
def test_bounds_hold_and_what_is_kept_is_whole(groups, max_groups, max_bytes):
    store = RecentGroups(max_groups, max_bytes)
    for number, (length, pictures) in enumerate(groups, 1):
        store.add("x" * length, pictures)
        assert len(store) <= max_groups
        assert store.bytes <= max_bytes
        numbers = kept(store)
        assert numbers == list(range(number - len(numbers) + 1, number + 1))  # the newest, in order
        held = {one.id: one for index in numbers for one in groups[index - 1][1]}
        assert store.bytes == sum(groups[index - 1][0] for index in numbers) + sum(
            len(one.content) for one in held.values()
        )
        for picture in PICTURES:
            assert store.picture(picture.id) == held.get(picture.id)


@given(GROUPS, st.integers(1, 8), st.integers(20, 200))
def test_no_more_goes_than_has_to(groups, max_groups, max_bytes):
    store = RecentGroups(max_groups, max_bytes)
    for length, pictures in groups:
        store.add("x" * length, pictures)
    count = len(store)
    if count < min(max_groups, len(groups)):
        more = groups[len(groups) - count - 1 :]
        held = {one.id: one for _, pictures in more for one in pictures}
        assert sum(length for length, _ in more) + sum(len(one.content) for one in held.values()) > max_bytes


def test_a_picture_that_two_groups_have_is_kept_until_both_are_gone():
    store = RecentGroups(2, 1000)
    store.add("a", [PICTURES[1], PICTURES[1]])
    store.add("b", [PICTURES[1]])
    assert store.bytes == 12
    store.add("c", [])
    assert store.picture(PICTURES[1].id) is PICTURES[1]
    store.add("d", [])
    assert (store.picture(PICTURES[1].id), store.bytes) == (None, 2)


def test_a_group_that_does_not_fit_alone_is_counted_and_not_kept():
    store = RecentGroups(5, 20)
    store.add("a", [])
    store.add("b", [PICTURES[5]])
    assert (len(store), store.bytes, store.newest) == (0, 0, 2)
    assert store.after(0) is None
    store.add("c", [])
    assert kept(store) == [3]
