"""The report shows every figure of both ways of writing."""

import json

from benchmarks.explain import FREE, STRUCTURED, Measured, Plan
from benchmarks.interference import ALONE, EXPLAINING, Interference

from jrm_training.bootstrap import Estimate


def figures(value):
    return {
        "instruction_following": {
            "ok": Estimate(value, 0.1, 0.9, 8, 2),
            "regions_made_up": Estimate(None, None, None, 0, 0),
        },
        "visual_quality": {"verdict_right": Estimate(value, None, None, 8, 1)},
    }


MEASURED = Measured(
    about="a machine",
    edits=8,
    rates={STRUCTURED: 400.4, FREE: 300},
    figures={STRUCTURED: figures(1.0), FREE: figures(0.5)},
    scoring=Interference([{ALONE: [0.01], EXPLAINING: [0.03]}, {ALONE: [0.01], EXPLAINING: [0.01]}], explained=5),
    plan=Plan(calls=1, rounds=2, callers=4),
)


def test_a_row_for_each_figure_of_each_dimension():
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in MEASURED.report().splitlines() if "|" in line]
    assert rows[0] == ["critiques of 8 edits of the test split", STRUCTURED, FREE]
    assert rows[2:6] == [
        ["instruction following: status ok", "1.000 [0.100, 0.900]", "0.500 [0.100, 0.900]"],
        ["instruction following: regions made up ↓", "–", "–"],
        ["visual quality: verdict is the true label", "1.000", "0.500"],
        ["tokens written per second", "400", "300"],
    ]
    assert rows[8] == ["p50, ms", "10.0", "20.0", "2.00", "1.00-3.00"]


def test_what_was_measured_is_said():
    text = MEASURED.report()
    assert "2 calls of each kind by one caller, in 2 rounds" in text
    assert "5 edits were explained meanwhile" in text
    assert "a machine" in text


def test_the_numbers_are_json():
    numbers = json.loads(json.dumps(MEASURED.numbers()))
    assert numbers["figures"][FREE]["visual_quality"]["verdict_right"]["value"] == 0.5
    assert numbers["scoring"]["rounds"][0][EXPLAINING] == [0.03]
