"""What is measured of JPEG on the wire."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from benchmarks.jpeg_wire import as_jpeg

from support.pictures import photo

ROOT = Path(__file__).parents[2]


def test_a_lower_quality_is_further_away():
    image = photo()
    off = [np.abs(np.asarray(as_jpeg(quality)(image), int) - np.asarray(image, int)).mean() for quality in (95, 75)]
    assert 0 < off[0] < off[1]


def test_the_command_prints_its_tables():
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-m", "benchmarks.jpeg_wire", "--groups", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert finished.returncode == 0, finished.stderr
    assert "JPEG 75" in finished.stdout
    assert finished.stdout.count("| reward ") == 2
