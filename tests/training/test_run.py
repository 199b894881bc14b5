"""From a recipe to a checkpoint that is served, in one call."""

import shutil

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jrm_service.model.checkpoint import open_checkpoint
from jrm_service.model.checkpoint_source import open_source
from jrm_training.config import Data
from jrm_training.data import DataError, Edit, Group, write_groups
from jrm_training.run import Joined, open_data, run
from jrm_training.trainer import read_log
from jrm_training.world import World
from support import checkpoints
from support.training import groups, recipe

DIMENSIONS = ("instruction_following", "visual_quality")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return checkpoints.write(tmp_path_factory.mktemp("start") / "start", checkpoints.two_passes())


@pytest.fixture(scope="module")
def jsonl(tmp_path_factory):
    return write_groups(tmp_path_factory.mktemp("data") / "groups.jsonl", groups(4))


@pytest.fixture(scope="module")
def finished(start, jsonl, tmp_path_factory):
    """The folder of a run of two steps, and what the console was told."""
    out = tmp_path_factory.mktemp("runs") / "run"
    console = Console(record=True, width=160, force_terminal=True, file=(out.parent / "console").open("w"))
    assert run(wanted(jsonl), start, out, "cpu", console) == out / "checkpoint"
    console.file.close()
    return out, console.export_text()


def wanted(jsonl, **changes):
    return recipe(data={"jsonl": str(jsonl)}, **changes)


def quietly(*arguments):
    return run(*arguments, "cpu", Console(quiet=True))


def test_the_result_is_served_and_passes_its_own_golden_scores(finished):
    model, _ = open_source(finished[0] / "checkpoint", ["cpu"], "float32", "trie").load()
    assert model.name == "tried"
    assert model.description["self_test"]["cases"] == 4  # two groups of two edits


def test_provenance_says_how_it_was_made_and_no_paths(finished, start, jsonl):
    history = open_checkpoint(finished[0] / "checkpoint").manifest.provenance
    assert history["steps"] == 2
    assert history["groups"] == 4
    assert history["start"] == open_checkpoint(start).fingerprint
    assert history["recipe"]["optimizer"]["lr"] == 1e-3
    assert history["recipe"]["alpha"] == 0.7
    assert str(jsonl.parent) not in str(history)


def test_every_step_is_logged_and_on_the_board(finished):
    log = read_log(finished[0])
    board = EventAccumulator(str(finished[0] / "tensorboard")).Reload()
    for name, key in (("loss/rank", "rank"), ("loss/language", "language"), ("gradient_norm", "gradient_norm")):
        points = [(event.step, event.value) for event in board.Scalars(name)]
        assert points == [(line["step"], pytest.approx(line[key], rel=1e-6)) for line in log]
    assert {f"accuracy/{name}" for name in DIMENSIONS} <= set(board.Tags()["scalars"])


def test_the_bar_shows_both_losses_gradient_and_speed(finished):
    last = finished[1].splitlines()[-1]
    for shown in ("tried", "2/2", "rank 0.", "language ", "gradient ", "groups/s"):
        assert shown in last


def test_a_finished_run_is_left_as_it_is(finished, start, jsonl):
    out, _ = finished
    before = {file: file.stat().st_mtime_ns for file in (out / "checkpoint").rglob("*")}
    assert quietly(wanted(jsonl), start, out) == out / "checkpoint"
    assert {file: file.stat().st_mtime_ns for file in (out / "checkpoint").rglob("*")} == before


def test_a_run_that_was_killed_while_exporting_exports_again(finished, start, jsonl, tmp_path):
    out = shutil.copytree(finished[0], tmp_path / "run")
    (out / "checkpoint").rename(out / ".checkpoint.partial")
    (out / ".checkpoint.partial" / "model.safetensors").write_bytes(b"half")
    assert quietly(wanted(jsonl), start, out) == out / "checkpoint"
    again, once = (open_checkpoint(folder / "checkpoint").fingerprint for folder in (out, finished[0]))
    assert again == once
    assert not (out / ".checkpoint.partial").exists()


def test_another_runs_checkpoint_is_not_overwritten(finished, start, jsonl, tmp_path):
    shutil.copytree(finished[0] / "checkpoint", tmp_path / "run" / "checkpoint")
    with pytest.raises(FileExistsError, match="another run made it"):
        quietly(wanted(jsonl), start, tmp_path / "run")


def test_bad_rows_stop_a_run_before_it_begins(start, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"source": 1}\n')
    with pytest.raises(DataError, match="line 1"):
        quietly(wanted(tmp_path / "bad.jsonl"), start, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_head_that_no_row_would_train_is_warned_about(start, tmp_path):
    """It would be served, and the reward pools it."""
    quiet = [
        Group(one.source, one.instruction, tuple(Edit(e.image, {"visual_quality": n}) for n, e in enumerate(one.edits)))
        for one in groups(2)
    ]
    data = write_groups(tmp_path / "groups.jsonl", quiet)
    with (tmp_path / "console").open("w+") as file:
        run(wanted(data), start, tmp_path / "run", "cpu", Console(file=file, width=200))
        file.seek(0)
        warnings = [line for line in file if "warning: " in line]
    assert len(warnings) == 1
    assert "no row compares edits in instruction_following" in warnings[0]


def test_a_killed_run_does_not_go_on_with_rows_that_have_changed(start, tmp_path):
    data = write_groups(tmp_path / "groups.jsonl", groups(4))
    quietly(wanted(data), start, tmp_path / "run")
    (tmp_path / "run" / "checkpoint").rename(tmp_path / "moved")
    data.write_text(data.read_text().replace("edit number 3", "edit number 5"))
    with pytest.raises(ValueError, match="started on other data: rows was"):
        quietly(wanted(data), start, tmp_path / "run")


# --- data ------------------------------------------------------------------------------------------------------------


def test_a_curriculum_is_its_stages_one_after_the_other():
    data = Data.model_validate(
        {"seed": 5, "edits": 3, "curriculum": [{"groups": 2, "shapes": [1, 1]}, {"groups": 3, "shapes": [2, 4]}]}
    )
    opened = open_data(data, DIMENSIONS)
    assert len(opened) == 5
    expected = [*World(2, 5, edits=3, shapes=(1, 1)), *World(3, 6, edits=3, shapes=(2, 4))]
    assert [(one.instruction, one.edits[0].critiques) for one in opened] == [
        (one.instruction, one.edits[0].critiques) for one in expected
    ]


def test_joined_data_sets_are_one_sequence():
    joined = Joined(["ab", "", "cde"])
    assert list(joined) == list("abcde")
    assert (joined[0], joined[4], joined[-1], joined[-5]) == ("a", "e", "e", "a")
    assert joined[1:4] == ["b", "c", "d"]
    for beyond in (5, -6):
        with pytest.raises(IndexError):
            joined[beyond]
    assert len(Joined([])) == 0
