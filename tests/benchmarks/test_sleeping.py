"""What is measured of a sleep."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.heavy
def test_dropped_weights_hold_nothing():
    bundled = ROOT / "service/jrm_service/model/bundled/jrm-tiny"
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-m", "benchmarks.sleeping", "--checkpoint", str(bundled), "--times", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert finished.returncode == 0, finished.stderr
    host, drop = ([cell.strip() for cell in line.split("|")[1:-1]] for line in finished.stdout.splitlines()[-2:])
    assert (host[0], drop[0], drop[2]) == ("host", "drop", "0.00")
    assert float(host[1]) > 0
