"""The overload run from end to end; nothing is said about speed."""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.overload import Measured, PatientRequest, Plan
from benchmarks.raw_callers import Reply

ROOT = Path(__file__).parents[2]
PLAN = Plan(seconds=1.0, times=4.0, max_queue=240, patient_share=0.1, side=32, per_candidate_s=0.02, per_batch_s=0.02)


def test_the_command_prints_its_table_and_keeps_its_numbers(tmp_path):
    saved = tmp_path / "overload.json"
    arguments = ["--seconds", "2", "--max-queue", "48", "--per-candidate-s", "0.01", "--patient-share", "0.2"]
    command = [sys.executable, "-W", "error", "-m", "benchmarks.overload", *arguments, "--save", saved]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=280).stdout
    for row in ("goodput / capacity", "admitted, p99", "429, p50 / p99", "patient: no scores in the end"):
        assert f"| {row} " in printed
    [wrong] = [line for line in printed.splitlines() if line.startswith("| wrong rewards ")]
    assert wrong.split("|")[2].strip() == "0"
    statuses = {reply["status"] for reply in json.loads(saved.read_text())["replies"]}
    assert {200, 429} <= statuses <= {200, 429, 504}


def test_goodput_counts_what_was_scored_in_the_window():
    replies = [Reply(200, 0.5, 1.0), Reply(200, 0.5, 1.0), Reply(429, 0.01, 1.0, 1.0)]
    measured = Measured(PLAN, 50.0, 200.0, 0, 2.0, replies, [])
    assert measured.goodput == 12.0
    assert measured.bound == 240 / 50 + 2 * (0.02 + 24 * 0.02)


def test_a_patient_caller_without_scores_has_starved_however_often_it_came():
    patient_requests = [
        PatientRequest(0, True),
        PatientRequest(2, True),
        PatientRequest(0, False),
        PatientRequest(3, False),
    ]
    assert Measured(PLAN, 50.0, 200.0, 0, 2.0, [], patient_requests).starved == 2
