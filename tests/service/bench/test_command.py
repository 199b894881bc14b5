"""`jrm bench` as a user runs it, from the checkout and from an installed wheel. Nothing is said about speed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jrm_client.cli import app
from jrm_service.model.checkpoint import open_checkpoint
from jrm_training.data import Edit, Group, write_groups
from support import checkpoints
from support.pictures import photo

ROOT = Path(__file__).parents[3]
JRM = [sys.executable, "-c", "from jrm_client.cli import main; main()"]


def bench(*arguments: object) -> subprocess.CompletedProcess:
    # A setting of the environment must not reach the server that is measured: this one would refuse every caller.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "JRM_MAX_QUEUE": "1"}
    command = [*JRM, "bench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=280, env=environment)


def is_whole(figures: dict) -> bool:
    engine, server = figures["engine"], figures["server"]
    rates = [engine["rate"], engine["share"], server["rate"], server["alone_rate"], *engine["sizes"].values()]
    return min(rates) > 0 and server["apart"] < 1e-5 and figures["seconds_of_a_step"] > 0


@pytest.mark.heavy
def test_a_users_checkpoint_is_measured_in_process_and_over_http(tmp_path):
    path = checkpoints.write(tmp_path / "mine", checkpoints.two_passes())
    done = bench("--checkpoint", path, "--quick", "--edits", 3, "--side", 64, "--save", tmp_path / "saved.json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("A step of 288 candidates (96 groups of 3) takes about ")
    figures = json.loads((tmp_path / "saved.json").read_text())
    assert is_whole(figures)
    assert figures["fingerprint"] == open_checkpoint(path).fingerprint
    assert figures["precision"] == "float32"


def test_what_is_wrong_is_told_in_a_line(tmp_path):
    for arguments, status, message in (
        (["--checkpoint", str(tmp_path / "none")], 1, "error: "),
        (["--device", "cuda:7"], 1, "error: device 'cuda:7': torch sees "),
        (["--precision", "int3"], 2, "--precision int3"),
        (["--save", str(tmp_path / "no" / "file.json")], 2, "--save"),
        (["--compare-precision", str(tmp_path / "none.jsonl")], 1, "error: "),
    ):
        done = CliRunner().invoke(app, ["bench", *arguments], env={"COLUMNS": "200"})
        assert done.exit_code == status, arguments
        assert message in done.stderr, arguments
        assert "Traceback" not in done.stderr


@pytest.fixture(params=["pairs", "preferences"])
def data(request, tmp_path) -> Path:
    """Two groups of three, in either format."""
    edits = [[photo(64, 48, seed=10 * n + k) for k in range(3)] for n in range(2)]
    if request.param == "preferences":
        labelled = [[Edit(edit, {"visual_quality": k}) for k, edit in enumerate(of_group)] for of_group in edits]
        groups = [Group(photo(64, 48, seed=n), f"edit {n}", tuple(of_group)) for n, of_group in enumerate(labelled)]
        return write_groups(tmp_path / "groups.jsonl", groups)
    rows = []
    for n, of_group in enumerate(edits):
        photo(64, 48, seed=n).save(tmp_path / f"{n}.png")
        for k, edit in enumerate(of_group):
            edit.save(tmp_path / f"{n}-{k}.png")
            rows.append({"source": f"{n}.png", "edited": f"{n}-{k}.png", "instruction": f"edit {n}"})
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_precisions_are_compared_on_the_groups_of_a_file(tmp_path, data):
    path = checkpoints.write(tmp_path / "mine", checkpoints.two_passes())
    saved = tmp_path / "saved.json"
    arguments = ["--checkpoint", str(path), "--compare-precision", str(data), "--device", "cpu", "--save", str(saved)]
    done = CliRunner().invoke(app, ["bench", *arguments])
    assert done.exit_code == 0, done.stderr
    assert "Kendall's tau" in done.stdout
    comparisons = {one["precision"]: one for one in json.loads(saved.read_text())["comparisons"]}
    assert {"bfloat16", "float16"} <= set(comparisons)
    assert all(sum(bin_["pairs"] for bin_ in one["bins"]) == 6 for one in comparisons.values())


def test_a_bad_row_and_a_missing_image_are_named(tmp_path):
    file = tmp_path / "pairs.jsonl"
    for row, message in (
        ({"source": "0.png", "edited": "", "instruction": "x"}, "error: pairs.jsonl:1: edited: missing, empty"),
        ({"source": "0.png", "edited": "1.png", "instruction": "x"}, "error: 0.png: No such file or directory"),
    ):
        file.write_text(json.dumps(row) + "\n")
        done = CliRunner().invoke(app, ["bench", "--compare-precision", str(file), "--device", "cpu"])
        assert done.exit_code == 1
        assert message in done.stderr


@pytest.mark.heavy
def test_an_installed_wheel_measures_the_bundled_checkpoint(tmp_path):
    """Nothing of the checkout is on the path: what the command needs is in the wheel."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", tmp_path, ROOT], check=True)
    (wheel,) = tmp_path.glob("jrm_serve-*.whl")
    subprocess.run([*pip, "install", "--no-index", "--no-deps", "--target", tmp_path / "installed", wheel], check=True)
    where = "import jrm_client, jrm_service; print(jrm_client.__file__, jrm_service.__file__)"
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "installed"), "OMP_NUM_THREADS": "1"}
    options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 280}
    files = subprocess.run([sys.executable, "-c", where], check=True, **options).stdout.split()
    assert all(Path(file).is_relative_to(tmp_path / "installed") for file in files)
    command = [*JRM, "bench", "--quick", "--save", "saved.json"]
    done = subprocess.run(command, check=False, **options)
    assert done.returncode == 0, done.stderr
    assert is_whole(json.loads((tmp_path / "saved.json").read_text()))
