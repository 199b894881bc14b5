"""The forward pass over a packed row: it never makes the host wait for the device, and leaves the backbone alone."""

import pytest
import torch

from jrm_service.model.checkpoint import load_model, open_checkpoint
from jrm_service.model.rows import PackedModel, pack
from jrm_service.model.varlen import one_by_one
from jrm_service.model.weights import empty_model
from jrm_service.scoring.preparing import CheckpointPreparer
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
