"""The benchmarks run from end to end, as a user starts them. Nothing is said about speed."""

import os
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
        timeout=280,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.mark.heavy
def test_the_comparison_prints_its_tables_and_draws_its_plots(tmp_path):
    saved = tmp_path / "measured.json"
    printed = run("benchmarks.compare", "--quick", "--save", saved, XDG_CACHE_HOME=str(tmp_path))
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


@pytest.fixture
def bare_machine(tmp_path):
    """A PYTHONPATH with this repository and nothing that a bare GPU machine lacks."""
    missing = ["pydantic", "pydantic_core", "fastapi", "starlette", "uvicorn", "typer", "matplotlib"]
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.machinery, importlib.util, sys\n"
        # The environment's own, which this one hides: it may repair what cannot be imported without it.
        f"paths = [path for path in sys.path if path != {str(tmp_path)!r}]\n"
        "if spec := importlib.machinery.PathFinder.find_spec('sitecustomize', paths):\n"
        "    spec.loader.exec_module(importlib.util.module_from_spec(spec))\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {missing}:\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
    )
    return os.pathsep.join(map(str, [tmp_path, ROOT / "client", ROOT / "service"]))


@pytest.mark.heavy
def test_the_gpu_benchmark_runs_on_a_bare_machine(bare_machine):
    printed = run("benchmarks.gpu", "--shape", "tiny", "--device", "cpu", "--rounds", 1, PYTHONPATH=bare_machine)
    for heading in ("attention: ", "matrix product: ", "| paper: one candidate", "| paper: G, ", "| prompt first: G, "):
        assert heading in printed


@pytest.mark.heavy
def test_a_difference_above_the_tolerance_ends_the_gpu_benchmark(bare_machine):
    finished = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--shape", "tiny", "--device", "cpu", "--tolerance", "-1"],
        cwd=ROOT,
        env=os.environ | ONE_THREAD | {"PYTHONPATH": bare_machine},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert finished.returncode != 0
    assert "its speed means nothing" in finished.stderr
    assert "candidates/s" not in finished.stdout
