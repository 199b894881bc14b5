"""``jrm train``, ``jrm init`` and ``jrm world`` as a user calls them."""

import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from jrm_service.model.checkpoint import open_checkpoint
from jrm_service.model.checkpoint_source import BUNDLED
from jrm_training.batch import Collator
from jrm_training.data import read_groups, write_groups
from jrm_training.tiny import write_start
from jrm_training.train_commands import init, train, world
from jrm_training.trainer import read_log
from jrm_training.world import World
from support import checkpoints
from support.training import groups

RECIPE = """
name = "small"
batch = 2
micro_batch = 2
saved_dtype = "float32"
[data]
curriculum = [{groups = 2, shapes = [1, 1]}]
edits = 2
[optimizer]
lr = 1e-3
"""

app = typer.Typer()
for command in (train, init, world):
    app.command()(command)


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return checkpoints.write(tmp_path_factory.mktemp("start") / "start", checkpoints.two_passes())


@pytest.fixture
def recipe(tmp_path):
    file = tmp_path / "small.toml"
    file.write_text(RECIPE)
    return file


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_train_writes_a_checkpoint_and_may_be_called_again(start, recipe, tmp_path):
    arguments = ("train", "--recipe", recipe, "--checkpoint", start, "--out", tmp_path / "run", "--device", "cpu")
    told = f"wrote {tmp_path}/run/checkpoint; serve it with: jrm serve --checkpoint {tmp_path}/run/checkpoint"
    for _ in range(2):
        result = run(*arguments)
        assert result.exit_code == 0, result.output
        assert told in result.output
    assert open_checkpoint(tmp_path / "run" / "checkpoint").manifest.name == "small"
    assert len(read_log(tmp_path / "run")) == 1


def test_options_go_over_the_recipe(start, recipe, tmp_path):
    data = write_groups(tmp_path / "groups.jsonl", groups(4))
    options = ("--data", data, "--alpha", "0", "--name", "other", "--device", "cpu")
    result = run("train", "--recipe", recipe, "--checkpoint", start, "--out", tmp_path / "run", *options)
    assert result.exit_code == 0, result.output
    made = open_checkpoint(tmp_path / "run" / "checkpoint").manifest
    assert made.name == "other"
    assert made.provenance["groups"] == 4
    assert [line["language"] for line in read_log(tmp_path / "run")] == [0, 0]


def test_own_data_goes_on_from_the_bundled_checkpoint(recipe, tmp_path):
    data = write_groups(tmp_path / "groups.jsonl", World(2, edits=2))
    result = run("train", "--recipe", recipe, "--data", data, "--out", tmp_path / "run", "--device", "cpu")
    assert result.exit_code == 0, result.output
    made = open_checkpoint(tmp_path / "run" / "checkpoint").manifest
    assert made.provenance["start"] == open_checkpoint(BUNDLED).fingerprint


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--recipe", "none"), "error: none: no such file, and none of the shipped recipes"),
        (("--recipe", "jrm-tiny", "--alpha", "2"), "error: alpha: Input should be less than or equal to 1"),
        (("--recipe", "jrm-tiny", "--checkpoint", "nowhere"), "error: nowhere: not a folder"),
        (("--recipe", "jrm-tiny", "--device", "tpu"), "error: device 'tpu': not a device name"),
        (("--recipe", "jrm-8b"), "error: [Errno 2] No such file or directory: "),  # its train.jsonl
    ],
)
def test_what_is_wrong_is_one_line_without_a_traceback(start, tmp_path, options, told):
    given = () if "--checkpoint" in options else ("--checkpoint", start)
    result = run("train", "--out", tmp_path / "run", *given, *options)
    assert result.exit_code == 1
    assert result.output.startswith(told)
    assert "Traceback" not in result.output
    assert len(result.output.splitlines()) == 1


def test_bad_toml_and_bad_rows_are_told_too(start, recipe, tmp_path):
    (tmp_path / "bad.toml").write_text("name = ")
    (tmp_path / "bad.jsonl").write_text("{}\n")
    common = ("--checkpoint", start, "--out", tmp_path / "run", "--device", "cpu")
    for result in (
        run("train", "--recipe", tmp_path / "bad.toml", *common),
        run("train", "--recipe", recipe, "--data", tmp_path / "bad.jsonl", *common),
    ):
        assert result.exit_code == 1
        assert result.output.startswith("error: ")
    assert "line 1: " in result.output


def test_init_prepares_a_checkpoint_and_says_how_to_go_on(start, tmp_path):
    """The tiny checkpoint is a stock folder too."""
    result = run("init", "--base", start, "--out", tmp_path / "out", "--pixels", 16_384, "--name", "mine")
    assert result.exit_code == 0, result.output
    assert "wrote mine, not trained yet" in result.output
    assert f"jrm train --recipe jrm-8b --checkpoint {tmp_path}/out --data DATA --out RUN" in result.output
    checkpoint = open_checkpoint(tmp_path / "out")
    assert checkpoint.image_spec.max_pixels == 16_384


def test_init_tells_what_is_wrong(tmp_path):
    result = run("init", "--base", tmp_path / "none", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert result.output.strip() == f"error: {tmp_path}/none: not a folder"


def test_world_writes_groups_of_two_sources_and_a_tiny_model_takes_two(tmp_path):
    out = tmp_path / "world.jsonl"
    result = run("world", "--out", out, "--count", 2, "--edits", 2, "--two-sources", 1)
    assert result.exit_code == 0, result.output
    groups = read_groups(out, ("instruction_following", "visual_quality"))
    assert list(groups) == list(World(2, split="test", edits=2, two_sources=1.0))
    assert [len(group.sources) for group in groups] == [2, 2]
    start = write_start(tmp_path / "start")
    assert start.manifest.max_sources == 2
    assert len(Collator(start).row([groups[0]]).packed.distinct_images) == 4


def test_world_writes_preference_data(tmp_path):
    out = tmp_path / "world.jsonl"
    result = run("world", "--out", out, "--count", 2, "--edits", 3, "--split", "unseen", "--seed", 4)
    assert result.exit_code == 0, result.output
    assert "wrote 2 groups" in result.output
    data = read_groups(out, ("instruction_following", "visual_quality"))
    assert [len(group.edits) for group in data] == [3, 3]
    again = run("world", "--out", out, "--count", 2)
    assert again.exit_code == 1
    assert again.output.strip() == f"error: {out}: already exists and is not overwritten"


def test_world_knows_its_splits(tmp_path):
    result = run("world", "--out", tmp_path / "x.jsonl", "--split", "trian")
    assert result.exit_code == 2
    assert "expected train, test or unseen" in result.output


def test_the_module_that_torchrun_starts_has_the_commands():
    told = subprocess.run([sys.executable, "-m", "jrm_training", "--help"], capture_output=True, text=True, check=True)
    assert all(name in told.stdout for name in ("train", "init", "evaluate", "world"))
