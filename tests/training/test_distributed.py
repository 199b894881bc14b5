"""Two real processes against one: equal weights, with and without sharding, and states that either can go on from."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from rich.console import Console

from jrm_service.model.checkpoint import open_checkpoint
from jrm_service.model.checkpoint_source import open_source
from jrm_training.batch import Collator
from jrm_training.data import write_groups
from jrm_training.distributed import place, sum_over_devices
from jrm_training.memory import count_memory
from jrm_training.run import run
from jrm_training.trainer import read_log
from support import checkpoints
from support.launch import two_processes
from support.training import groups, recipe, weights

TOLERANCE = 1e-5
JOBS = {
    "plain": {},
    "sharded": {"shard": True, "gradient_checkpointing": True},
    "resumed": {"shard": True},  # from a state of one process
    "accumulated": {"shard": True, "batch": 4},  # two rows of each process in a step
    "bfloat16": {"shard": True, "gradient_checkpointing": True, "dtype": "bfloat16"},  # as jrm-8b
    "lora": {"lora": {"r": 4, "alpha": 8, "targets": ["q_proj", "down_proj"]}, "gradient_checkpointing": True},
}


@dataclass(frozen=True)
class Runs:
    """Folders of runs by name: ``alone`` was one process, the others were two."""

    folder: Path
    start: Path
    recipe: dict

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        return weights(self.folder / name / "checkpoint")

    def alone(self, name: str) -> None:
        run(self.recipe[name], self.start, self.folder / name, "cpu", Console(quiet=True))

    def state(self, name: str, step: int) -> Path:
        return self.folder / name / "states" / f"{step:08}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    start = checkpoints.write(folder / "start", checkpoints.two_passes(), tied=False)
    data = {"jsonl": str(write_groups(folder / "groups.jsonl", groups(4)))}
    recipes = {name: recipe(data=data, **changes) for name, changes in JOBS.items()}
    recipes["sharded"] = recipe(data=data, save_every=1, **JOBS["sharded"])
    recipes["alone"] = recipes["back"] = recipe(data=data, save_every=1, shard=True)
    recipes["alone, one step"] = recipe(data=data, **JOBS["accumulated"])
    recipes["alone, lora"] = recipe(data=data, **JOBS["lora"])
    made = Runs(folder, start, recipes)
    made.alone("alone")
    made.alone("alone, one step")
    made.alone("alone, lora")
    jobs = [
        {
            "recipe": recipes[name].model_dump(mode="json"),
            "start": str(start),
            "out": str(folder / name),
            **({"state": str(made.state("alone", 1))} if name == "resumed" else {}),
        }
        for name in JOBS
    ]
    two_processes(jobs, folder)
    return made


def furthest(one, other):
    assert set(one) == set(other)
    return max((tensor.float() - other[name].float()).abs().max().item() for name, tensor in one.items())


@pytest.mark.parametrize("name", ["plain", "sharded"])
def test_two_processes_give_the_weights_of_one(runs, name):
    assert furthest(runs.weights("alone"), runs.weights(name)) < TOLERANCE


@pytest.mark.parametrize("name", ["plain", "sharded"])
def test_two_processes_log_the_steps_of_one(runs, name):
    for ours, theirs in zip(read_log(runs.folder / name), read_log(runs.folder / "alone"), strict=True):
        for key in ("step", "rank", "language", "total", "gradient_norm", "accuracy", "tokens", "learning_rate"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-4), key


def test_adapters_are_trained_alike_by_two_processes(runs):
    assert furthest(runs.weights("alone, lora"), runs.weights("lora")) < TOLERANCE


def test_rows_add_up_to_the_step_of_one_process(runs):
    assert furthest(runs.weights("alone, one step"), runs.weights("accumulated")) < TOLERANCE


def test_no_device_keeps_whole_gradients_until_the_step_ends(runs):
    """For 8B they would be 35 GB on each."""
    assert json.loads((runs.folder / "accumulated" / "spread.json").read_text()) == [False, True]


@pytest.mark.parametrize("name", ["plain", "sharded", "bfloat16", "lora"])
def test_a_process_holds_what_the_dry_run_counts(runs, name):
    held = json.loads((runs.folder / name / "bytes.json").read_text())
    checkpoint = open_checkpoint(runs.start)
    collator = Collator(checkpoint)
    counted = count_memory(runs.recipe[name], checkpoint, collator.new_tokens, collator.row(groups(1)), devices=2)
    frozen = counted.parameters - counted.trained
    assert held == {
        "weights": counted.weights - 4 * frozen,
        "gradients": counted.gradients,
        "optimizer": counted.optimizer,
    }


def test_two_processes_go_on_from_a_state_of_one(runs):
    assert [line["step"] for line in read_log(runs.folder / "resumed")] == [2]
    assert furthest(runs.weights("alone"), runs.weights("resumed")) < TOLERANCE


def test_one_process_goes_on_from_a_state_of_two(runs):
    shutil.copytree(runs.state("sharded", 1), runs.state("back", 1))
    runs.alone("back")
    assert [line["step"] for line in read_log(runs.folder / "back")] == [2]
    assert furthest(runs.weights("alone"), runs.weights("back")) < TOLERANCE


def test_the_8b_configuration_runs_and_computes_about_the_same(runs):
    ours, theirs = read_log(runs.folder / "bfloat16"), read_log(runs.folder / "alone")
    assert [one["total"] for one in ours] == pytest.approx([one["total"] for one in theirs], rel=0.02)
    assert 0 < furthest(runs.weights("alone"), runs.weights("bfloat16")) < 0.01


def test_what_two_processes_export_is_served(runs):
    """With the golden scores that the first one recorded."""
    source = open_source(runs.folder / "sharded" / "checkpoint", ["cpu"], "float32", "trie")
    model, _ = source.load()
    assert model.name == "tried"
    assert model.description["self_test"]["cases"] == 4


def test_a_process_without_a_group_is_alone():
    assert place() == (0, 1)
    assert sum_over_devices(torch.tensor([1.0, 2.5], dtype=torch.float64)) == [1.0, 2.5]
