"""The schedule, and which weights go where."""

import pytest
import torch

from jrm_service.model.checkpoint import open_checkpoint
from jrm_training.config import Optimizer
from jrm_training.model import JointModel
from jrm_training.optimization import Optimizers, schedule
from support import checkpoints


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def model(request, tmp_path_factory):
    path = checkpoints.write(tmp_path_factory.mktemp("model"), checkpoints.two_passes(), tied=request.param)
    return JointModel.load(open_checkpoint(path))


def names_of(model, params):
    names = {id(weight): name for name, weight in model.named_parameters()}
    return {names[id(weight)] for weight in params}


def test_linear_to_the_peak_and_a_cosine_from_there():
    recipe = Optimizer(lr=1, warmup=0.05)
    shares = [schedule(step, 100, recipe) for step in range(100)]
    assert shares[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert shares[5] == 1.0
    assert schedule(5 + 95 // 2, 100, recipe) == pytest.approx(0.5, abs=0.02)
    assert shares[5:] == sorted(shares[5:], reverse=True)
    assert 0 < shares[-1] < 1e-3


def test_the_cosine_ends_at_the_final_share():
    assert schedule(1000, 1000, Optimizer(lr=1, final=0.1)) == pytest.approx(0.1)


@pytest.mark.parametrize("warmup", [0.0, 1.0])
@pytest.mark.parametrize("total", [1, 2, 7])
def test_short_runs_have_a_rate_at_every_step(total, warmup):
    assert all(0 < schedule(step, total, Optimizer(lr=1, warmup=warmup)) <= 1 for step in range(total))


@pytest.mark.parametrize("muon", [None, 0.01])
def test_every_weight_is_updated_by_one_optimizer(model, muon):
    parts = Optimizers(model, Optimizer(lr=1e-3, muon_lr=muon)).parts
    taken = [id(weight) for part in parts for group in part.param_groups for weight in group["params"]]
    assert len(taken) == len(set(taken))
    assert set(taken) == {id(weight) for weight in model.parameters()}


def test_norms_biases_and_embeddings_do_not_decay(model):
    (adamw,) = Optimizers(model, Optimizer(lr=1e-3, weight_decay=0.1)).parts
    kept = names_of(model, [p for g in adamw.param_groups if not g["weight_decay"] for p in g["params"]])
    decayed = names_of(model, [p for g in adamw.param_groups if g["weight_decay"] for p in g["params"]])
    assert all(name.endswith("bias") or "norm" in name or "embed" in name for name in kept)
    assert "backbone.language_model.embed_tokens.weight" in kept
    assert "heads.heads.0.layers.0.weight" in decayed
    assert not any("norm" in name or name.endswith("bias") for name in decayed)


def test_muon_has_the_matrices_of_the_layers(model):
    _, muon = Optimizers(model, Optimizer(lr=1e-3, muon_lr=0.01)).parts
    names = names_of(model, [weight for group in muon.param_groups for weight in group["params"]])
    assert "backbone.language_model.layers.0.self_attn.q_proj.weight" in names
    assert "backbone.visual.blocks.0.attn.qkv.weight" in names
    assert not any("embed" in name or name.startswith(("heads.", "lm_head")) for name in names)


@pytest.mark.parametrize("muon", [None, 0.01])
def test_the_vision_tower_has_its_share_of_the_rates(model, muon):
    parts = Optimizers(model, Optimizer(lr=1e-3, muon_lr=muon, vision=0.25)).parts
    for part, lr in zip(parts, (1e-3, 0.01), strict=False):
        for group in part.param_groups:
            seeing = {".visual." in name for name in names_of(model, group["params"])}
            assert group["lr"] == pytest.approx(lr * (0.25 if seeing == {True} else 1.0))
            assert len(seeing) == 1


def test_a_step_moves_by_its_share_of_the_rate_and_forgets_the_gradient():
    weight = torch.nn.Linear(4, 4, bias=False)
    optimizers = Optimizers(weight, Optimizer(lr=1e-2, weight_decay=0))
    before = weight.weight.detach().clone()
    weight.weight.grad = torch.ones(4, 4)
    optimizers.step(0.5)
    assert torch.allclose(before - weight.weight, torch.full((4, 4), 0.5e-2), rtol=1e-3)  # Adam's first step is lr
    assert weight.weight.grad is None
