"""The benchmarks run from end to end, as a user starts them. Nothing is said about speed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
# Threads of a tiny model do nothing but wait for each other while other tests use the cores.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def run(*arguments: object, **environment: str) -> str:
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-m", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | ONE_THREAD | environment,
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.mark.heavy
def test_the_comparison_prints_its_tables_and_draws_its_plots(tmp_path):
    saved = tmp_path / "measured.json"
    printed = run("benchmarks.compare", "--quick", "--peer", "padded", "--save", saved, XDG_CACHE_HOME=str(tmp_path))
    run("benchmarks.plots", saved, tmp_path / "plots")
    for heading in ("| paper ", "| short ", "| prompt first ", "tokens of a row", "edits of a group", "callers "):
        assert heading in printed
    for contestant in ("(a) plain", "(b) padded", "(c) engine", "(d) service", "(e) service"):
        assert printed.count(f"| {contestant}") == 3
    plots = sorted((tmp_path / "plots").iterdir())
    assert [file.name for file in plots] == [f"performance-{name}.png" for name in ("comparison", "group", "load")]
    for file in plots:
        with Image.open(file) as image:
            assert min(image.size) > 400


def test_the_cost_of_a_request_has_a_row_for_every_form():
    printed = run("benchmarks.request_cost", "--groups", 1, "--edits", 2, "--side", 64)
    for form in ("PNG", "JPEG, quality 95", "array, sent as PPM"):
        [row] = [line for line in printed.splitlines() if line.startswith(f"| {form} ")]
        server, loop = (float(cell) for cell in row.split("|")[2:4])
        assert 0.0 < loop < server


@pytest.mark.heavy
@pytest.mark.timeout(600)
def test_vllm_gives_the_same_rewards_and_is_timed_beside_the_engine(tmp_path):
    printed = run("benchmarks.compare", "--quick", "--layout", "paper", "--peer", "vllm", XDG_CACHE_HOME=str(tmp_path))
    assert printed.count("| (f) vLLM pooling ") == 1
    [agreement] = re.findall(r"all scores agree to (\S+)", printed)
    assert float(agreement) < 1e-5
