"""The whole run, small: one server, two on a port, and all rewards right. Nothing is said about speed."""

import subprocess
import sys
from pathlib import Path

from benchmarks.full_machine import Run, row

ROOT = Path(__file__).parents[2]


def test_the_command_has_a_row_for_one_server_and_for_two():
    flags = ["--devices", "2", "--candidate-ms", "5", "--seconds", "0.5", "--side", "32"]
    command = [sys.executable, "-W", "error", "-m", "benchmarks.full_machine", *flags]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=280).stdout
    for name in ("| 2 of 5 ms, 1 server ", "| 2 of 5 ms, 2 servers "):
        assert name in printed


def test_the_slower_of_devices_and_cores_is_predicted():
    cost = Run(rate=0.0, server_s=0.003, callers_s=0.001)
    by_devices = row(1, 8, 0.02, cost, Run(rate=390.0, server_s=0.0032, callers_s=0.001))
    assert by_devices[4:8] == ["400.0", "390.0", "0.97", "98%"]
    by_cores = row(1, 8, 0.02, cost, Run(rate=190.0, server_s=0.003, callers_s=0.0012))
    assert by_cores[4:8] == ["199.5", "190.0", "0.95", "48%"]
