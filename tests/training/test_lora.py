"""Adapters on a frozen backbone: what is trained, what is merged, and that the merged checkpoint is an ordinary one."""

import shutil
import sys

import pytest
import torch
from rich.console import Console
from transformers import AutoTokenizer

from jrm_service.model.checkpoint import open_checkpoint
from jrm_service.model.checkpoint_source import open_source
from jrm_training.batch import Collator
from jrm_training.config import Lora, find_recipe, read_recipe
from jrm_training.data import write_groups
from jrm_training.init_checkpoint import prepare
from jrm_training.lora import add_lora
from jrm_training.model import JointModel
from jrm_training.run import open_data, run
from jrm_training.trainer import Trainer, read_log
from support import checkpoints
from support.training import groups, recipe, weights

LORA = {"r": 4, "alpha": 8.0, "targets": ("q_proj", "v_proj", "down_proj", "qkv")}
EMBEDDING = "model.language_model.embed_tokens.weight"


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def start(request, tmp_path_factory):
    """With region tags too, as ``jrm init`` leaves it."""
    folder = tmp_path_factory.mktemp("start")
    base = checkpoints.write(folder / "base", checkpoints.two_passes(), tied=request.param)
    return prepare(base, folder / "start", manifest=base / "reward" / "manifest.json", pixels=16_384).path


@pytest.fixture(scope="module")
def jsonl(tmp_path_factory):
    return write_groups(tmp_path_factory.mktemp("data") / "groups.jsonl", groups(4))


def wanted(jsonl, **changes):
    changes = {"lora": LORA, "save_every": 1, "optimizer": {"lr": 1e-2}} | changes
    return recipe(data={"jsonl": str(jsonl)}, **changes)


def trainer(start, jsonl, out, **changes):
    checkpoint, plan = open_checkpoint(start), wanted(jsonl, **changes)
    return Trainer(plan, checkpoint, open_data(plan.data, checkpoint.manifest.dimensions), out)


def new_ids(start):
    tokenizer = AutoTokenizer.from_pretrained(start)
    return [
        tokenizer.convert_tokens_to_ids(t) for t in ("<|Reward|>", "<|global|>", *(f"<|bbox_{n}|>" for n in range(8)))
    ]


@pytest.fixture(scope="module")
def finished(start, jsonl, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    run(wanted(jsonl), start, out, "cpu", Console(quiet=True))
    return out


def outputs_of(model, start):
    row = Collator(open_checkpoint(start)).row(groups(2, edits=3))
    joint = model.eval()(row)
    return torch.cat([*(one.flatten() for one in joint.outputs.values()), joint.logits.flatten()])


def test_the_merged_checkpoint_computes_what_the_adapters_computed(start, jsonl, finished):
    """Scores and logits."""
    adapted = trainer(start, jsonl, finished)  # from the last state
    assert adapted.finished
    with torch.no_grad():
        ours = outputs_of(adapted.model, start)
        merged = outputs_of(JointModel.load(open_checkpoint(finished / "checkpoint")), start)
        before = outputs_of(JointModel.load(open_checkpoint(start)), start)
    assert (ours - merged).abs().max() < 1e-5
    assert (before - merged).abs().max() > 1e-2


def test_it_is_served_and_passes_its_golden_scores(finished):
    model, _ = open_source(finished / "checkpoint", ["cpu"], "float32", "trie").load()
    assert model.name == "tried"
    assert model.description["self_test"]["cases"] == 4


def test_only_targets_new_rows_and_heads_have_moved(start, finished):
    before, after = weights(start), weights(finished / "checkpoint")
    assert set(before) == set(after)
    moved = {name for name, tensor in after.items() if not tensor.equal(before[name])}
    tables = {EMBEDDING, "lm_head.weight"} & set(before)
    targets = {name for name in before if name.endswith(tuple(f".{target}.weight" for target in LORA["targets"]))}
    heads = {name for name in before if name.startswith("head_")}
    assert targets
    assert moved == tables | targets | heads
    for name in tables:
        rows = (after[name] != before[name]).any(1).nonzero().flatten().tolist()
        assert set(rows) <= set(new_ids(start))
        assert min(new_ids(start)) in rows  # the reward token, which is in every prompt


def test_adapters_change_nothing_before_they_are_trained(start):
    checkpoint = open_checkpoint(start)
    model = JointModel.load(checkpoint)
    with torch.no_grad():
        before = outputs_of(model, start)
        add_lora(model, Lora.model_validate(LORA), Collator(checkpoint).new_tokens, 0)
        assert torch.allclose(outputs_of(model, start), before, atol=1e-6)


def test_a_row_learns_what_it_would_learn_in_the_whole_table(start):
    """The gradients of the rows are those rows of the embedding's gradient and the language head's."""
    checkpoint = open_checkpoint(start)
    ids = Collator(checkpoint).new_tokens
    assert sorted(ids) == sorted(new_ids(start))
    whole, adapted = JointModel.load(checkpoint), JointModel.load(checkpoint)
    add_lora(adapted, Lora.model_validate(LORA), ids, 0)
    for model in (whole, adapted):
        outputs_of(model, start).square().sum().backward()
    tables = whole.backbone.language_model.embed_tokens, whole.lm_head
    for table, rows in zip(tables, (adapted.backbone.language_model.embed_tokens, adapted.lm_head), strict=True):
        expected = table.weight.grad[ids]
        assert (rows.rows.grad - expected).norm() < 1e-5 * expected.norm()


def test_a_killed_run_goes_on_as_if_it_had_not_been(start, jsonl, finished, tmp_path):
    shutil.copytree(finished / "states" / "00000001", tmp_path / "run" / "states" / "00000001")
    run(wanted(jsonl), start, tmp_path / "run", "cpu", Console(quiet=True))
    assert [line["step"] for line in read_log(tmp_path / "run")] == [2]
    ours, theirs = weights(tmp_path / "run" / "checkpoint"), weights(finished / "checkpoint")
    assert all(tensor.equal(theirs[name]) for name, tensor in ours.items())


def test_states_hold_no_frozen_weight(start, finished):
    size = sum(file.stat().st_size for file in (finished / "states" / "00000002").iterdir())
    assert size < 0.7 * 12 * open_checkpoint(start).parameters


def test_a_state_does_not_go_on_from_another_start(start, jsonl, finished, tmp_path):
    other = shutil.copytree(start, tmp_path / "other")
    shutil.copy(finished / "checkpoint" / "model.safetensors", other)
    shutil.copytree(finished / "states", tmp_path / "run" / "states")
    with pytest.raises(ValueError, match="start was"):
        trainer(other, jsonl, tmp_path / "run")


def test_frozen_weights_are_kept_in_what_is_computed_in(start, jsonl, tmp_path):
    adapted = trainer(start, jsonl, tmp_path / "run", dtype="bfloat16", gradient_checkpointing=True)
    dtypes = {trained: set() for trained in (True, False)}
    for weight in adapted.model.parameters():
        dtypes[weight.requires_grad].add(weight.dtype)
    assert dtypes == {True: {torch.float32}, False: {torch.bfloat16}}
    logs = []
    adapted.fit(logs.append)
    exact = []
    trainer(start, jsonl, tmp_path / "exact").fit(exact.append)
    assert [log.total for log in logs] == pytest.approx([log.total for log in exact], rel=0.02)


def test_a_target_that_is_not_there_is_named_with_those_that_are(start, jsonl, tmp_path):
    with pytest.raises(ValueError, match=r"no linear layer is named query; the linear layers are .*q_proj"):
        trainer(start, jsonl, tmp_path / "run", lora=LORA | {"targets": ("q_proj", "query")})


def test_without_peft_the_extra_is_named(start, jsonl, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"lora: needs peft, which 'jrm-serve\[train\]' brings"):
        trainer(start, jsonl, tmp_path / "run")


def test_the_shipped_recipe_has_the_papers_losses_and_schedule():
    ours, papers = (read_recipe(find_recipe(name)) for name in ("jrm-8b-lora", "jrm-8b"))
    for key in ("alpha", "epochs", "batch", "max_tokens", "dtype", "gradient_checkpointing", "data"):
        assert getattr(ours, key) == getattr(papers, key), key
    assert ours.optimizer.betas == papers.optimizer.betas
    assert ours.optimizer.warmup == papers.optimizer.warmup
