"""Weights that move from one device to another: all of them, and what is shared stays shared."""

from types import SimpleNamespace

import torch
from benchmarks.bf16 import world_groups
from torch import nn

from jrm_service.model.checkpoint import open_checkpoint
from jrm_service.model.devices import empty_host_cache, move_weights, replace_tensors
from jrm_service.model.engine import TrieScorer
from jrm_service.scoring.preparing import CheckpointPreparer
from support import checkpoints


class Shared(nn.Module):
    """A tied weight, a buffer under two names, one that is not saved, and one that two modules have."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight
        table = torch.arange(4.0)
        self.register_buffer("table", table)
        self.register_buffer("again", table)
        self.register_buffer("passing", torch.ones(2, dtype=torch.bfloat16), persistent=False)
        self.embed.register_buffer("theirs", table)
        self.register_buffer("none", None)


def everything(module: nn.Module) -> list[torch.Tensor]:
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return [tensor for _, tensor in named]


def test_everything_is_replaced_and_what_is_shared_stays_shared():
    module = Shared()
    values, places = [tensor.clone() for tensor in everything(module)], {t.data_ptr() for t in everything(module)}
    replace_tensors(module, torch.clone)
    assert not places & {tensor.data_ptr() for tensor in everything(module)}
    assert all(
        torch.equal(old, new) and old.dtype == new.dtype for old, new in zip(values, everything(module), strict=True)
    )
    assert module.head.weight is module.embed.weight
    assert module.table is module.again is module.embed.theirs
    assert "passing" not in module.state_dict()
    assert module.embed.weight.requires_grad


def test_a_backbone_scores_the_same_from_other_places(tmp_path):
    checkpoint = open_checkpoint(checkpoints.write(tmp_path, checkpoints.one_pass()))
    scorer = TrieScorer(checkpoint, "cpu", torch.float32, feature_cache_bytes=0)
    candidates = [one for group in world_groups(CheckpointPreparer(checkpoint), 1) for one in group][:2]
    before = scorer.score(scorer.collate(candidates)).outcomes
    scorer.sleep()
    for module in (scorer._model, scorer._heads):
        replace_tensors(module, torch.clone)
    scorer.wake()
    assert scorer.score(scorer.collate(candidates)).outcomes == before


def test_nothing_is_copied_that_is_there_already():
    module = Shared()
    places = [tensor.data_ptr() for tensor in everything(module)]
    move_weights(module, "cpu")
    assert [tensor.data_ptr() for tensor in everything(module)] == places


def test_pinned_memory_is_given_back_on_every_torch():
    """2.11 has no public name for it, and a build for CPUs no private one."""
    emptied = []
    private = SimpleNamespace(_host_emptyCache=lambda: emptied.append("private"))
    public = SimpleNamespace(empty_host_cache=lambda: emptied.append("public"))
    empty_host_cache(SimpleNamespace(), private)
    empty_host_cache(public, SimpleNamespace())
    empty_host_cache(public, private)
    assert emptied == ["private", "public", "public"]
