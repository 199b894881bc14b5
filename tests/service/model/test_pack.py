"""What a packed row holds."""

import numpy as np
import pytest
import torch

from jrm_service.model.rows import pack
from jrm_service.model.trie import build_trie, positions
from jrm_service.model.varlen import one_by_one
from jrm_service.scoring.types import Image, Text

PICTURE = Image(b"picture", np.zeros((32, 64, 3), np.uint8), 2)
EDITS = [(Text((1, 2)), PICTURE, Text((3,))), (Text((1, 2)), PICTURE, Text((4, 5)))]


def test_a_row_has_every_common_beginning_once():
    row = pack(EDITS, factor=32, image_token_id=99)
    assert row.ids.tolist() == [1, 2, 99, 99, 3, 4, 5]
    assert row.images == [PICTURE]
    assert row.image_slots.tolist() == [2, 3]
    assert row.reads.tolist() == [4, 6]
    assert {tensor.dtype for tensor in (row.ids, row.position_ids, row.image_slots, row.reads)} == {torch.int64}


@pytest.mark.parametrize("rule", ["mrope", "sequential"])
def test_positions_of_a_row_are_those_of_its_trie(rule):
    expected = positions(build_trie(EDITS), 32, rule)
    row = pack(EDITS, factor=32, image_token_id=99, position_rule=rule)
    assert row.position_ids.shape == (3, 1, 7)
    assert row.position_ids[:, 0].tolist() == expected.tolist()


def test_a_row_counts_positions_as_stock_models_do_unless_it_is_told_otherwise():
    told = pack(EDITS, factor=32, image_token_id=99, position_rule="mrope")
    assert pack(EDITS, factor=32, image_token_id=99).position_ids.equal(told.position_ids)


def test_a_row_is_attended_to_by_the_kernel_that_it_was_packed_for():
    assert pack(EDITS, factor=32, image_token_id=99, kernel=one_by_one).attention.kernel is one_by_one
    assert pack(EDITS, factor=32, image_token_id=99).attention.kernel is None
