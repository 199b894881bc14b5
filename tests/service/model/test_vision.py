"""Pixels become patches on the device, with the numbers of the reference, and embeddings by a matrix product."""

import gc
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from jrm_service.images import preprocess
from jrm_service.images.preprocess import ImageSpec
from jrm_service.model.checkpoint import load_model, open_checkpoint
from jrm_service.model.families import FAMILIES
from jrm_service.model.vision import PatchProduct, VisionTower
from support import checkpoints
from support.cases import each
from support.pictures import photo

CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
SPECS = {
    "Qwen3-VL": ImageSpec(min_pixels=4096, max_pixels=65_536),
    "Qwen2.5-VL": ImageSpec(min_pixels=4096, max_pixels=65_536, patch_size=14, **CLIP),
    "one frame, blocks of three": ImageSpec(
        min_pixels=4096, max_pixels=65_536, patch_size=8, merge_size=3, temporal_patch_size=1
    ),
    "a std of its own for each channel": ImageSpec(
        min_pixels=4096, max_pixels=65_536, mean=(0.1, 0.7, 1 / 3), std=(0.3, 1e-3, 7.0)
    ),
}
FAMILY = FAMILIES["qwen3_vl"]
SIZES = [(64, 64), (37, 53), (301, 199), (500, 61), (23, 170)]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    checkpoint = open_checkpoint(checkpoints.write(tmp_path_factory.mktemp("vision"), checkpoints.one_pass()))
    return load_model(checkpoint, "cpu", torch.float32)[0]


@each("name", SPECS)
def test_patches_are_those_of_the_reference_bit_for_bit(backbone, name):
    spec = SPECS[name]
    images = [preprocess.resize(photo(*size, seed=n), spec) for n, size in enumerate(SIZES)]
    images[0] = np.arange(images[0].size).astype(np.uint8).reshape(images[0].shape)  # every level
    wanted = torch.from_numpy(np.concatenate([preprocess.patches(pixels, spec) for pixels in images]))
    tower = VisionTower(backbone.visual, FAMILY, spec)
    assert torch.equal(tower.patches([tower.inputs(pixels) for pixels in images]), wanted)


def test_patches_in_low_precision_are_rounded_once(backbone, tmp_path):
    spec = SPECS["Qwen2.5-VL"]
    pixels = preprocess.resize(photo(90, 120), spec)
    visual = load_model(open_checkpoint(checkpoints.write(tmp_path, checkpoints.one_pass())), "cpu", torch.bfloat16)[0]
    tower = VisionTower(visual.visual, FAMILY, spec)
    assert torch.equal(
        tower.patches([tower.inputs(pixels)]), torch.from_numpy(preprocess.patches(pixels, spec)).bfloat16()
    )


def test_read_only_pixels_are_taken(backbone):
    """What another process sent may be a view of its message; torch warns of such an array, and warnings are errors."""
    spec = SPECS["Qwen3-VL"]
    pixels = preprocess.resize(photo(64, 64), spec)
    pixels.flags.writeable = False
    tower = VisionTower(backbone.visual, FAMILY, spec)
    assert torch.equal(tower.inputs(pixels), torch.tensor(pixels.tolist(), dtype=torch.uint8))


def test_pixels_that_make_no_whole_tokens_are_refused(backbone):
    tower = VisionTower(backbone.visual, FAMILY, SPECS["Qwen3-VL"])
    with pytest.raises(ValueError, match="multiples of 32"):
        tower.encode([torch.zeros(64, 48, 3, dtype=torch.uint8)])


@each("bias", [True, False])
def test_the_patch_product_is_the_convolution(bias):
    torch.manual_seed(0)
    convolution = nn.Conv3d(3, 40, kernel_size=(2, 14, 14), stride=(2, 14, 14), bias=bias)
    patches = torch.randn(30, 3 * 2 * 14 * 14)
    wanted = convolution(patches.view(-1, 3, 2, 14, 14)).view(30, 40)
    product = PatchProduct(convolution)
    assert torch.allclose(product(patches), wanted, atol=1e-5)
    assert [name for name, _ in product.named_parameters()] == ["proj.weight"] + ["proj.bias"] * bias


def test_a_tower_twice_over_one_backbone_computes_the_same(backbone):
    names = list(backbone.state_dict())
    spec = SPECS["Qwen3-VL"]
    pixels = preprocess.resize(photo(80, 120), spec)
    once, twice = (VisionTower(backbone.visual, FAMILY, spec) for _ in range(2))
    with torch.inference_mode():
        first, second = (tower.encode([tower.inputs(pixels)])[0].embeds for tower in (once, twice))
    assert torch.equal(first, second)
    assert list(backbone.state_dict()) == names


def test_tables_made_while_scoring_serve_training(backbone):
    """An inference tensor could not be saved for a backward pass."""
    spec = SPECS["Qwen3-VL"]
    tower = VisionTower(backbone.visual.requires_grad_(True), FAMILY, spec)
    pixels = tower.inputs(preprocess.resize(photo(64, 96), spec))
    with torch.inference_mode():
        tower.encode([pixels])
    tower.encode([pixels])[0].embeds.sum().backward()
    weight = backbone.visual.patch_embed.proj.weight
    assert weight.grad is not None
    assert weight.grad.abs().sum() > 0
    backbone.visual.requires_grad_(False)


def test_a_tower_that_nobody_uses_any_more_is_gone_at_once(tmp_path):
    """What another model needs of a GPU must not wait for the garbage collector."""
    checkpoint = open_checkpoint(checkpoints.write(tmp_path, checkpoints.one_pass()))
    model, _ = load_model(checkpoint, "cpu", torch.float32)
    tower = VisionTower(model.visual, FAMILY, checkpoint.image_spec)
    with torch.inference_mode():
        tower.encode([tower.inputs(np.zeros((64, 64, 3), np.uint8))])
    weights = weakref.ref(model.visual)
    gc.disable()
    try:
        del model, tower
        assert weights() is None
    finally:
        gc.enable()
