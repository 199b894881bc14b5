"""The recipe ``jrm-8b`` as it is shipped, on two processes that torchrun starts, with all but the layers as in 8B.

Only sizes and data are others. Both the real number of tokens and the paper's prompts are there: it starts from what
``jrm init`` makes of a folder as the hub has it.
"""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from rich.console import Console
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from jrm_service.model.checkpoint import load_model, open_checkpoint
from jrm_service.model.checkpoint_source import open_source
from jrm_service.model.editreward import default_prompts
from jrm_service.model.rows import PackedModel
from jrm_training.batch import Collator
from jrm_training.config import find_recipe, read_recipe
from jrm_training.data import write_groups
from jrm_training.distributed import shard
from jrm_training.dry_run import as_tables, dry_run
from jrm_training.init_checkpoint import prepare
from jrm_training.model import JointModel
from jrm_training.run import run
from jrm_training.trainer import read_log
from support import cut_8b
from support.launch import two_processes
from support.training import groups

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(600)]

DOCS = Path(__file__).parents[2] / "docs" / "training.md"
STEPS = 2
SIZES = {"epochs": "2", "batch": "8", "save_every": "1", "workers": "0"}  # two rows of each process in a step
TOLERANCE = 1e-5  # of a moment, in units of its norm: rows are equal to the bit, but not the order of their sum
PIXELS = 16_384


@dataclass(frozen=True)
class Runs:
    """Folders of runs by name."""

    folder: Path

    def state(self, name: str, step: int) -> Path:
        return self.folder / name / "states" / f"{step:08}"

    def moments(self, name: str) -> dict[str, torch.Tensor]:
        """First and second moments of every weight after the last step. The weights hardly move in two steps."""
        file = self.folder / f"{name}.pt"
        dcp_to_torch_save(self.state(name, STEPS), file)
        state = torch.load(file)["optimizers"]["state"]
        file.unlink()
        return {f"{weight}.{key}": state[weight][key] for weight in state for key in ("exp_avg", "exp_avg_sq")}

    def log(self, name: str) -> list[dict]:
        return read_log(self.folder / name)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("8b")
    return prepare(cut_8b.write_base(folder / cut_8b.NAME), folder / "start", pixels=PIXELS).path


@pytest.fixture(scope="module")
def runs(start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    made = Runs(folder)
    text = find_recipe("jrm-8b").read_text()
    for key, value in SIZES.items():
        text, found = re.subn(rf"^{key} = \w+", f"{key} = {value}", text, flags=re.MULTILINE)
        assert found == 1, key
    (folder / "jrm-8b.toml").write_text(text)
    data = write_groups(folder / "groups.jsonl", groups(8))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = {"--recipe": "jrm-8b.toml", "--checkpoint": start, "--data": data, "--out": "two", "--device": "cpu"}
    command = [*torchrun, "-m", "jrm_training", "train", *(str(word) for pair in options.items() for word in pair)]
    told = subprocess.run(command, cwd=folder, env=os.environ | {"COLUMNS": "200"}, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert "wrote two/checkpoint" in told.stdout

    recipe = read_recipe(folder / "jrm-8b.toml", data={"jsonl": data})
    shutil.copytree(made.state("two", 1), made.state("one, from a state of two", 1))
    for name in ("one", "one, from a state of two"):
        run(recipe, start, folder / name, "cpu", Console(quiet=True))
    jobs = [
        {"recipe": recipe.model_dump(mode="json"), "start": str(start), "out": str(folder / name), "state": str(state)}
        for name, state in (
            ("two, killed", made.state("two", 1)),
            ("two, from a state of one", made.state("one", 1)),
        )
    ]
    two_processes(jobs, folder)
    return made


RESUMED = ["two, killed", "one, from a state of two", "two, from a state of one"]


def furthest(ours, theirs):
    """The largest distance between two tensors of one name, in units of the tensor's norm."""
    assert set(ours) == set(theirs)
    off = {name: (ours[name] - other).norm() / other.norm().clamp(min=1e-12) for name, other in theirs.items()}
    return max(value.item() for value in off.values())


def test_it_is_the_papers_recipe_on_a_model_with_real_tokens_and_prompts(start, runs):
    recipe, shipped = read_recipe(runs.folder / "jrm-8b.toml"), read_recipe(find_recipe("jrm-8b"))
    sizes = {"epochs", "batch", "save_every", "data"}
    assert recipe.model_dump(exclude=sizes) == shipped.model_dump(exclude=sizes)
    checkpoint = open_checkpoint(start)
    assert checkpoint.weights["lm_head.weight"].shape == (cut_8b.ROWS, 32)
    assert checkpoint.manifest.provenance["base"] == cut_8b.NAME
    assert {one.prompt for one in checkpoint.manifest.passes} == set(default_prompts().values())


def test_two_processes_compute_what_one_computes(runs):
    assert furthest(runs.moments("two"), runs.moments("one")) < TOLERANCE
    for ours, theirs in zip(runs.log("two"), runs.log("one"), strict=True):
        for key in ("step", "rank", "language", "total", "gradient_norm", "accuracy", "tokens", "learning_rate"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-4), key


@pytest.mark.parametrize("name", RESUMED)
def test_a_killed_run_goes_on_with_any_number_of_processes(runs, name):
    assert [line["step"] for line in runs.log(name)] == [2]
    assert furthest(runs.moments(name), runs.moments("two")) < TOLERANCE


def test_layers_compute_what_a_server_in_bfloat16_computes(start):
    """**h**, to the bit: rotary tables of images stay in float32, and the residual stream is in bfloat16."""
    checkpoint = open_checkpoint(start)
    row = Collator(checkpoint).row(groups(1))
    backbone, _ = load_model(checkpoint, "cpu", torch.bfloat16)
    served, images = PackedModel(backbone, checkpoint.image_spec), row.packed.distinct_images
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = JointModel.load(checkpoint)
        shard(model, torch.bfloat16)
        with torch.no_grad():
            encoded = served.vision.encode([served.vision.inputs(image.pixels) for image in images.values()])
            hidden = served.hidden_states(row.packed, dict(zip(images, encoded, strict=True)))
            assert model(row).h.equal(hidden[row.reads])
    finally:
        dist.destroy_process_group()


def test_the_docs_have_the_dry_run_of_the_whole_8b(start, tmp_path):
    """Line by line, without a weight."""
    folder = cut_8b.without_weights(start, tmp_path / "whole")
    checkpoint = open_checkpoint(folder, weights=False)
    found = dry_run(read_recipe(find_recipe("jrm-8b")), checkpoint, None, 8)
    assert found.memory.parameters == 8_775_547_220  # 8.77 billion, and two heads
    assert found.memory.peak < 80e9
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(as_tables(found))
    docs = DOCS.read_text()
    for line in console.export_text().splitlines():
        assert line.rstrip() in docs, line


def test_states_are_spread_over_the_processes(runs):
    """Each writes its own half."""
    sizes = [file.stat().st_size for file in sorted(runs.state("two", STEPS).glob("*.distcp"))]
    assert len(sizes) == 2
    assert min(sizes) > 0.9 * max(sizes)


def test_what_it_exports_is_served(runs):
    model, _ = open_source(runs.folder / "two" / "checkpoint", ["cpu"], "float32", "trie").load()
    assert model.name == "jrm-8b"
    assert model.description["self_test"]["cases"] == 4
    history = json.loads((runs.folder / "two" / "checkpoint" / "reward" / "manifest.json").read_text())["provenance"]
    assert history["recipe"]["optimizer"]["lr"] == 2e-6
