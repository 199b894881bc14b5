"""The forward pass over a packed row never makes the host wait for the device."""

import pytest
import torch

from jrm_service.model.checkpoint import open_checkpoint
from jrm_service.model.heads import RewardHeads
from jrm_service.model.packed import PackedModel
from jrm_service.model.packing import pack
from jrm_service.model.scorer import CheckpointPreparer
from jrm_service.model.varlen import one_by_one
from jrm_service.model.weights import empty_model
from support import checkpoints
from support.pictures import photo


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return open_checkpoint(checkpoints.write(tmp_path_factory.mktemp("packed"), checkpoints.two_passes()))


@pytest.fixture(scope="module")
def row(checkpoint):
    preparer = CheckpointPreparer(checkpoint)
    source, *edits = (preparer.image(photo(*size, seed=n)) for n, size in enumerate([(96, 80), (40, 40), (300, 40)]))
    candidates = [preparer.candidate(source, edited, "make it red") for edited in edits]
    return pack([0, 1], candidates, factor=checkpoint.image_spec.factor, image_token_id=300)


def on_meta(checkpoint, kernel=None):
    """A model without numbers: whatever asks for one raises, as if it were waited for for ever."""
    with torch.device("meta"):
        heads = RewardHeads(checkpoint.manifest, checkpoint.hidden_size)
    return PackedModel(empty_model(checkpoint.config).to(torch.bfloat16).eval(), heads, checkpoint.image_spec, kernel)


@pytest.mark.parametrize("kernel", [None, one_by_one])
def test_nothing_is_read_back_from_the_device(checkpoint, row, kernel):
    model = on_meta(checkpoint, kernel)
    images = {image.key: image for image in row.images}
    with torch.inference_mode():
        encoded = model.vision.encode([model.vision.inputs(image) for image in images.values()])
        outputs = model.outputs(row.to("meta"), dict(zip(images, encoded, strict=True)))
    assert outputs.shape == (2, 4)
    assert outputs.is_meta


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
