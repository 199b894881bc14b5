"""Pooling of dimensions into a reward, and what a head computes."""

import math

import pytest
import torch
from safetensors.torch import load_file

from jrm_service.model.checkpoint import load_model, open_checkpoint
from jrm_service.model.heads import RewardHeads, head_shapes, to_score
from jrm_service.model.manifest import Manifest
from jrm_service.scoring.types import Dimension, combine
from support import checkpoints

TWO = {"a": Dimension(1.0, 0.3), "b": Dimension(3.0, 0.4)}


def test_mean_pools_independent_gaussians():
    assert combine(TWO, {"a": 1.0, "b": 1.0}, "mean") == (2.0, pytest.approx(0.25))


def test_weights_count():
    reward, std = combine(TWO, {"a": 3.0, "b": 1.0}, "mean")
    assert reward == pytest.approx(1.5)
    assert std == pytest.approx(math.hypot(3 * 0.3, 0.4) / 4)


def test_min_takes_mean_and_std_of_the_lowest():
    assert combine(TWO, {"a": 1.0, "b": 1.0}, "min") == (1.0, 0.3)


def test_a_huge_std_is_no_overflow():
    """Its square would be: exp(log_std) is finite up to about 1e308."""
    huge = {name: Dimension(0.0, 1e200) for name in "ab"}
    assert combine(huge, {"a": 1.0, "b": 1.0}, "mean")[1] == pytest.approx(math.sqrt(2) / 2 * 1e200)


def test_no_std_without_the_stds():
    assert combine({"a": Dimension(1.0, None), "b": TWO["b"]}, {"a": 1.0, "b": 1.0}, "mean") == (2.0, None)


@pytest.mark.parametrize("how", ["mean", "min"])
@pytest.mark.parametrize("broken", ["a", "b"])
def test_nan_is_never_pooled_away(how, broken):
    dimensions = TWO | {broken: Dimension(math.nan, 0.1)}
    assert math.isnan(combine(dimensions, {"a": 1.0, "b": 1.0}, how)[0])


def test_a_head_is_linear_relu_linear():
    manifest = Manifest.model_validate(checkpoints.one_pass())
    heads = RewardHeads(manifest, 64)
    tensors = heads.tensors()
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == head_shapes(manifest, 64)
    h = torch.randn(64)
    expected = tensors["head_0.0.weight"] @ h + tensors["head_0.0.bias"]
    for number in (1, 2):
        weight, bias = tensors[f"head_0.{number}.weight"], tensors[f"head_0.{number}.bias"]
        expected = weight @ torch.relu(expected) + bias
    torch.testing.assert_close(heads([h])["instruction_following"], expected)


@pytest.mark.parametrize("name", ["a.b", "train", "pop", "forward", "0"])
def test_a_head_may_have_any_name(tmp_path, name):
    document = checkpoints.one_pass()
    document["heads"] = {name: document["heads"]["head_0"]}
    document["passes"][0]["read"] = {"visual_quality": name}
    document |= {"reward": {}, "explain": {}}
    checkpoint = open_checkpoint(checkpoints.write(tmp_path, document))
    _, heads = load_model(checkpoint, "cpu", torch.float32)
    assert heads.tensors().keys() == load_file(tmp_path / "reward" / "heads.safetensors").keys()


def test_an_overflowing_std_is_not_finite():
    manifest = Manifest.model_validate(checkpoints.one_pass())
    score = to_score(manifest, {"instruction_following": [0.0, 1e4], "visual_quality": [0.0, 0.0]})
    assert not score.finite
