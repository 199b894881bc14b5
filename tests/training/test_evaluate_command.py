"""``jrm evaluate`` on a tiny checkpoint with random weights, in process and through a real server."""

import json

import pytest
import typer
from typer.testing import CliRunner

from jrm_service.settings import Settings
from jrm_training.data import Edit, Group, write_groups
from jrm_training.evaluate_command import evaluate
from support import checkpoints, servers
from support.pictures import photo

app = typer.Typer()
app.command()(evaluate)


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("JRM_API_KEY", raising=False)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return checkpoints.write(tmp_path_factory.mktemp("tiny"), checkpoints.one_pass())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Six groups of four, labelled so that random weights are neither always right nor always wrong."""
    groups = [
        Group(
            photo(64, 48, seed=n),
            f"edit {n}",
            tuple(
                Edit(
                    photo(64, 48, seed=10 * n + k),
                    {"instruction_following": 1 + (k + n) % 4, "visual_quality": 1 + k % 3},
                )
                for k in range(4)
            ),
        )
        for n in range(6)
    ]
    return write_groups(tmp_path_factory.mktemp("data") / "groups.jsonl", groups)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def figures(path):
    report = json.loads(path.read_text())
    outputs = report["dimensions"] | {"reward": report["reward"]}
    return {
        (output, name): (figure["value"], figure["low"], figure["high"], figure["count"])
        for output, found in outputs.items()
        for name, figure in found["figures"].items()
    }


def test_checkpoint_and_server_give_the_same_figures(checkpoint, data, tmp_path):
    here, there = tmp_path / "here.json", tmp_path / "there.json"
    common = ("--data", data, "--json")
    done = run(*common, here, "--checkpoint", checkpoint, "--device", "cpu", "--out", tmp_path / "here.jsonl")
    assert done.exit_code == 0, done.output
    with servers.serving(Settings(checkpoint=checkpoint, device="cpu")) as url:
        done = run(*common, there, "--url", url, "--out", tmp_path / "there.jsonl")
    assert done.exit_code == 0, done.output
    ours, theirs = figures(here), figures(there)
    assert ours.keys() == theirs.keys()
    for key, values in ours.items():
        assert values == pytest.approx(theirs[key], abs=1e-4), key
    assert 0 < ours["reward", "pairwise_accuracy"][0] < 1


def test_groups_of_two_sources_are_evaluated(tmp_path):
    checkpoint = checkpoints.write(tmp_path / "two", checkpoints.several_sources(2))
    world = ("--world", "test", "--count", 3, "--edits", 2, "--two-sources", 1, "--device", "cpu")
    done = run(*world, "--checkpoint", checkpoint, "--out", tmp_path / "o", "--json", tmp_path / "j")
    assert done.exit_code == 0, done.output
    assert figures(tmp_path / "j")["reward", "pairwise_accuracy"][3] > 0
    one = checkpoints.write(tmp_path / "one", checkpoints.one_pass())
    done = run(*world, "--checkpoint", one, "--out", tmp_path / "p")
    assert done.exit_code == 1
    assert "takes one source image, got 2" in (tmp_path / "p").read_text() + done.output


def test_the_table_names_every_output_and_the_checkpoint(checkpoint, data, tmp_path):
    done = run("--data", data, "--checkpoint", checkpoint, "--device", "cpu", "--out", tmp_path / "o")
    words = ("instruction_following", "visual_quality", "reward", "pairwise accuracy", "6 groups, 24 edits")
    assert all(word in done.stdout for word in (*words, "jrm-tiny-untrained", "[95% intervals]"))


def test_an_edit_without_a_score_is_shown_and_fails_the_command(checkpoint, tmp_path):
    labels = {"instruction_following": 1, "visual_quality": 1}
    edits = [Edit(photo(64, 48, seed=n), labels) for n in range(2)]
    data = write_groups(tmp_path / "long.jsonl", [Group(photo(), "z" * 9000, tuple(edits))])
    done = run("--data", data, "--checkpoint", checkpoint, "--device", "cpu", "--out", tmp_path / "o")
    assert done.exit_code == 1
    assert "edits without a score: 2 (instruction_too_long 2)" in done.stdout


def test_another_checkpoint_needs_another_file(checkpoint, data, tmp_path):
    out = tmp_path / "scores.jsonl"
    other = checkpoints.write(tmp_path / "other", checkpoints.one_pass(), seed=1)
    assert run("--data", data, "--checkpoint", checkpoint, "--device", "cpu", "--out", out).exit_code == 0
    whole = out.read_bytes()
    done = run("--data", data, "--checkpoint", other, "--device", "cpu", "--out", out)
    assert done.exit_code == 1
    assert "use another --out" in done.stderr
    assert out.read_bytes() == whole


def test_the_synthetic_world(checkpoint, tmp_path):
    arguments = ("--world", "test", "--count", 2, "--edits", 3, "--checkpoint", checkpoint, "--device", "cpu")
    done = run(*arguments, "--out", tmp_path / "o")
    assert done.exit_code == 0, done.output
    assert "2 groups, 6 edits" in done.stdout


def test_bad_rows_are_all_told(checkpoint, tmp_path):
    data = tmp_path / "bad.jsonl"
    data.write_text("{}\n[1]\n")
    done = run("--data", data, "--checkpoint", checkpoint, "--device", "cpu", "--out", tmp_path / "o")
    assert done.exit_code == 1
    assert "line 1" in done.stderr
    assert "line 2" in done.stderr


def test_problems_of_a_checkpoint_are_told(data, tmp_path):
    done = run("--data", data, "--checkpoint", tmp_path / "nothing", "--device", "cpu", "--out", tmp_path / "o")
    assert (done.exit_code, "not a folder" in done.stderr) == (1, True)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--data", "d", "--checkpoint", "c"],
        ["--out", "o", "--data", "d"],
        ["--out", "o", "--checkpoint", "c"],
        ["--out", "o", "--data", "d", "--world", "test", "--checkpoint", "c"],
        ["--out", "o", "--data", "d", "--checkpoint", "c", "--url", "http://localhost"],
        ["--out", "o", "--world", "moon", "--checkpoint", "c"],
        ["--out", "o", "--data", "d", "--checkpoint", "c", "--dtype", "int8"],
        ["--out", "o", "--benchmark", "mmrb2", "--checkpoint", "c"],
        ["--out", "o", "--data", "d", "p", "--checkpoint", "c"],
        ["--out", "o", "--benchmark", "mmrb", "p", "--checkpoint", "c"],
        ["--out", "o", "--benchmark", "mmrb2", "p", "--data", "d", "--checkpoint", "c"],
        ["--out", ".", "--data", "d", "--checkpoint", "c"],
        ["--out", "o", "--data", "d", "--checkpoint", "c", "--json", "nowhere/figures.json"],
    ],
)
def test_wrong_usage(arguments):
    assert run(*arguments).exit_code == 2
