"""What `jrm bench` says of its figures."""

import dataclasses
import json

import pytest

from jrm_service.bench.engine import EngineFigures, Plan
from jrm_service.bench.report import Report
from jrm_service.bench.server import ServerFigures

ENGINE = EngineFigures(
    batch_groups=5, token_budget=65_536, peak_bytes=None, matrix_product=7e14, rate=50.0, share=0.5, one_ms=40.0,
    group_ms=300.0, sizes={1: 20.0, 12: 50.0}, sizes_share={1: 0.4, 12: 0.5},
)  # fmt: skip
SERVER = ServerFigures(
    start_s=31.0, apart=1e-7, callers=24, rate=40.0, alone_rate=30.0, one_ms=50.0, group_ms=400.0, busy_group_ms=7000.0
)
REPORT = Report("a machine", "jrm", "f" * 32, "bfloat16", Plan(), ENGINE, SERVER)


def cells(text: str, first: str) -> list[str]:
    [line] = [line for line in text.splitlines() if line.startswith(f"| {first} ")]
    return [cell.strip() for cell in line.split("|")[1:-1]]


@pytest.mark.parametrize(
    ("rate", "seconds"), [(40.0, "7.2 s"), (20.0, "14 s"), (1.0, "5 min"), (0.01, "8.0 h"), (2880.0, "0.1 s")]
)
def test_the_last_sentence_is_what_a_user_plans_with(rate, seconds):
    report = dataclasses.replace(REPORT, server=dataclasses.replace(SERVER, rate=rate))
    expected = f"A step of 288 candidates (24 groups of 12) takes about {seconds} on this machine."
    assert report.to_text().splitlines()[-1] == expected


def test_the_tables_hold_the_server_against_the_engine():
    text = REPORT.to_text()
    assert cells(text, "engine, in process") == ["engine, in process", "50.00", "1.00", "50%"]
    assert cells(text, "server, 24 callers") == ["server, 24 callers", "40.00", "0.80", ""]
    assert cells(text, "a group of 12") == ["a group of 12", "300.0", "400.0", "7000.0"]
    assert cells(text, "12") == ["12", "50.00", "2.50", "50%"]
    assert "65,536 tokens a batch, so 5 groups of 12 here" in text


def test_a_step_has_whole_groups():
    assert (Plan(edits=7).step_groups, Plan(edits=7).step_candidates) == (42, 294)


def test_what_is_saved_is_json_with_every_figure():
    saved = json.loads(json.dumps(REPORT.to_json()))
    assert saved["format"] == "jrm-bench/1"
    assert saved["engine"]["sizes"] == {"1": 20.0, "12": 50.0}
    assert saved["seconds_of_a_step"] == pytest.approx(7.2)
