"""What is measured of pictures that were recoded or resized before they came."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from benchmarks.preprocessing import as_file, by_interpolate, by_opencv, by_opencv_area, by_pillow, by_torch, row

from support.pictures import photo

ROOT = Path(__file__).parents[2]


def off(ours, theirs):
    """Mean distance of two images, levels."""
    return np.abs(np.asarray(ours, int) - np.asarray(theirs, int)).mean()


def test_a_lower_quality_is_further_away():
    image = photo()
    losses = [off(as_file("JPEG", quality=quality)(image), image) for quality in (95, 75)]
    assert 0 < losses[0] < losses[1]
    assert off(as_file("WEBP", lossless=True)(image), image) == 0


def test_resizing_without_antialiasing_is_further_from_the_servers():
    image = photo(640, 480)
    away = {one: off(one(image, (64, 48)), by_pillow(image, (64, 48))) for one in (by_torch, by_opencv, by_interpolate)}
    assert away[by_torch] < 0.5
    assert min(away[by_opencv], away[by_interpolate]) > 2 * off(
        by_opencv_area(image, (64, 48)), by_pillow(image, (64, 48))
    )
    assert away[by_opencv] == pytest.approx(away[by_interpolate], rel=0.05)  # the same sampling


def test_a_row_says_how_rewards_moved():
    theirs = np.arange(24.0)
    ours = theirs.copy()
    ours[[22, 23]] = 23, 22  # another pick in one group of two, one pair of 132 in another order
    assert row("swapped", ours, theirs) == ["swapped", "0", "1", "1", "+0", "99.2%", "50%"]


@pytest.mark.heavy
def test_the_command_prints_its_table():
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-m", "benchmarks.preprocessing", "--groups", "1", "--large", "128"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert finished.returncode == 0, finished.stderr
    rows = [line for line in finished.stdout.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 20
    assert any("JPEG 75, of 128 pixels" in line for line in rows)
