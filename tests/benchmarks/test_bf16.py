"""What is measured of bfloat16."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from benchmarks.bf16 import Comparison, order_kept, report, spread

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("ours", "kept"),
    [
        ([1.0, 2.0, 3.0, 9.0, 8.0], 1.0),
        ([1.0, 3.0, 2.0, 9.0, 8.0], 3 / 4),  # one of the four pairs within the groups of three and two
        ([1.0, 2.0, 2.0, 9.0, 8.0], 3 / 4),  # a tie that the other does not have
        ([9.0, 9.1, 9.2, 0.1, 0.0], 1.0),  # across groups nothing is compared
    ],
)
def test_order_is_compared_within_groups(ours, kept):
    theirs = np.array([1.0, 2.0, 3.0, 9.0, 8.0])
    assert order_kept(np.array(ours), theirs, [3, 2]) == pytest.approx(kept)


def test_ties_of_both_are_the_same_order():
    assert order_kept(np.array([1.0, 1.0]), np.array([2.0, 2.0]), [2]) == 1.0


def test_the_spread_is_that_of_a_group():
    assert spread(np.array([0.0, 2.0, 100.0, 104.0]), [2, 2]) == pytest.approx(1.5)


def test_a_table_has_the_largest_difference_of_every_number():
    ours, theirs = {"reward": np.array([1.0, 2.0, 3.25])}, {"reward": np.array([1.0, 2.0, 3.0])}
    row = report([Comparison("a, b", ours, theirs)], [3]).splitlines()[-1]
    assert [cell.strip() for cell in row.split("|")[1:-1]] == [
        "reward",
        "0.0e+00",
        "2.4e-01",
        "2.5e-01",
        "0.82",
        "100.00%",
    ]


def test_the_command_prints_its_tables(tmp_path):
    arguments = ["--candidates", "2", "--random-size", "tiny", "--random-candidates", "2", "--device", "cpu"]
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-m", "benchmarks.bf16", *arguments],
        cwd=ROOT,
        env={"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("| bfloat16: in a batch, alone |") == 2
    assert finished.stdout.count("| reward ") == 6
