"""The forward pass over a packed row: it never makes the host wait for the device, and leaves the backbone alone."""

import numpy as np
import pytest
import torch

from jrm_service.model.checkpoint import load_model, open_checkpoint
from jrm_service.model.rows import PackedModel, pack
from jrm_service.model.trie import build_trie, positions
from jrm_service.model.varlen import one_by_one
from jrm_service.model.weights import empty_model
from jrm_service.scoring.preparing import CheckpointPreparer
from jrm_service.scoring.types import Image, Text
from support import checkpoints
from support.pictures import photo


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return open_checkpoint(checkpoints.write(tmp_path_factory.mktemp("rows"), checkpoints.two_passes()))


@pytest.fixture(scope="module")
def row(checkpoint):
    preparer = CheckpointPreparer(checkpoint)
    source, *edits = (preparer.image(photo(*size, seed=n)) for n, size in enumerate([(96, 80), (40, 40), (300, 40)]))
    candidates = [preparer.candidate([source], edited, "make it red") for edited in edits]
    return pack(
        [sequence.segments for candidate in candidates for sequence in candidate.sequences],
        factor=checkpoint.image_spec.factor,
        image_token_id=checkpoint.config.image_token_id,
    )


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


def hidden_states(model, row, device):
    images = row.distinct_images
    encoded = model.vision.encode([model.vision.inputs(image.pixels) for image in images.values()])
    return model.hidden_states(row.to(device), dict(zip(images, encoded, strict=True)))


def on_meta(checkpoint, kernel=None):
    """A model without numbers: whatever asks for one raises, as if it were waited for for ever."""
    return PackedModel(empty_model(checkpoint.config).to(torch.bfloat16).eval(), checkpoint.image_spec, kernel)


@pytest.mark.parametrize("kernel", [None, one_by_one])
def test_nothing_is_read_back_from_the_device(checkpoint, row, kernel):
    with torch.inference_mode():
        hidden = hidden_states(on_meta(checkpoint, kernel), row, "meta")
    assert hidden.shape == (len(row.ids), checkpoint.hidden_size)
    assert hidden.is_meta


@pytest.mark.parametrize(
    "wait",
    [
        lambda t: t.sum().item(),
        lambda t: t.tolist(),
        lambda t: t[t > 0],
        lambda t: t.nonzero(),
        lambda t: bool(t.any()),
        lambda t: t.cpu(),
    ],
    ids=["item", "tolist", "mask", "nonzero", "bool", "copy"],
)
def test_what_makes_the_host_wait_raises_there(wait):
    """That is what the test above relies on."""
    with pytest.raises((RuntimeError, NotImplementedError)):
        wait(torch.ones(3, device="meta"))


@torch.inference_mode()
def test_a_second_model_over_one_backbone_changes_nothing(checkpoint, row):
    """Features of images would be added twice if each model left something of its own in the layers."""
    backbone, _ = load_model(checkpoint, "cpu", torch.float32)
    first = PackedModel(backbone, checkpoint.image_spec)
    before = hidden_states(first, row, "cpu")
    second = PackedModel(backbone, checkpoint.image_spec)
    assert torch.equal(hidden_states(first, row, "cpu"), before)
    assert torch.equal(hidden_states(second, row, "cpu"), before)
