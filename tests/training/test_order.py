"""Which groups a row takes: every group once an epoch, whatever the rows and however many processes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jrm_training.order import Order

counts = st.integers(1, 12)


def order(count=7, batch=4, micro_batch=2, seed=3, shuffle=True):
    return Order(count, batch, micro_batch, seed, shuffle)


def flat(rows):
    return [group for row in rows for group in row]


@given(counts, counts, st.integers(0, 5), st.booleans())
def test_an_epoch_has_every_group_once(count, batch, seed, shuffle):
    made = order(count, batch, 1, seed, shuffle)
    seen = [group for step in range(2 * count) for group in flat(made.rows(step))]
    for epoch in range(2):
        assert sorted(seen[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_epochs_are_shuffled_apart_and_a_curriculum_is_not():
    shuffled = flat(order(8, 8, 8).rows(0)), flat(order(8, 8, 8).rows(1))
    assert shuffled[0] != shuffled[1]
    assert [flat(order(8, 8, 8, shuffle=False).rows(step)) for step in (0, 1)] == [list(range(8))] * 2


@given(st.integers(0, 40), st.sampled_from([1, 2, 4]))
def test_rows_do_not_change_what_a_step_takes(step, micro_batch):
    assert flat(order(micro_batch=micro_batch).rows(step)) == flat(order(micro_batch=4).rows(step))


@given(st.integers(0, 40), st.sampled_from([1, 2, 4]))
def test_processes_share_a_steps_rows(step, world):
    alone = list(order(micro_batch=1).rows(step))
    dealt = [list(order(micro_batch=1).rows(step, rank, world)) for rank in range(world)]
    assert {len(rows) for rows in dealt} == {4 // world}
    assert [rows[n] for n in range(4 // world) for rows in dealt] == alone


def test_a_batch_that_the_processes_cannot_share_is_refused():
    assert order(batch=8, micro_batch=2).rows_each(4) == 1
    with pytest.raises(ValueError, match="batch 8: must be a multiple of micro_batch 2 x 3 devices"):
        order(batch=8, micro_batch=2).rows_each(3)


def test_a_step_does_not_depend_on_the_steps_before_it():
    made = order()
    every = [list(made.rows(step)) for step in range(9)]
    assert [list(order().rows(step)) for step in reversed(range(9))] == every[::-1]
