"""Held-out thresholds, halves, and the two forms of a report."""

import json

import pytest

from jrm_training.benchmarks.catalog import BENCHMARKS
from jrm_training.benchmarks.pairs import open_benchmark
from jrm_training.benchmarks.report import table, to_json
from support.benchmark_files import genai_row, report, values, write_jsonl


def rows(count, *, sources):
    """By turns a vote for the better edit (a difference of 5) and a tie (a difference of 1)."""
    return [
        genai_row(n % sources, *(("leftvote", 20, 15) if n % 2 else ("tievote", 16, 15)), left_model=str(n))
        for n in range(count)
    ]


@pytest.fixture
def made(tmp_path):
    write_jsonl(tmp_path, rows(41, sources=41))
    return report("genai-bench", tmp_path, tmp_path / "o")


def test_the_threshold_comes_from_one_half_and_the_accuracy_from_the_other(made):
    """Whichever half is drawn, calling a difference of 1 a tie makes everything right; without it, the votes are."""
    assert made.halves == (20, 21)
    assert made.outputs["reward"].thresholds == {"all": 1}
    figure = made.outputs["reward"].figures["all"]["accuracy_with_ties"]
    assert (figure.value, figure.count) == (1, 21)
    assert values(made, "all")["strict_accuracy"] == pytest.approx(20 / 41)


def test_where_people_never_tie_nothing_is_called_one(tmp_path):
    write_jsonl(tmp_path, [genai_row(n, "leftvote", 16 + n, 15) for n in range(40)])
    made = report("genai-bench", tmp_path, tmp_path / "o")
    assert made.outputs["reward"].thresholds == {"all": 0}
    assert values(made, "all")["accuracy_with_ties"] == 1


def test_pairs_of_a_source_stay_in_one_half(tmp_path):
    write_jsonl(tmp_path, rows(40, sources=4))
    made = report("genai-bench", tmp_path, tmp_path / "o")
    assert made.halves == (2, 2)
    assert made.outputs["reward"].figures["all"]["accuracy_with_ties"].count == 20
    assert made.outputs["reward"].figures["all"]["accuracy_with_ties"].groups == 2


def test_the_seed_draws_the_halves(tmp_path):
    write_jsonl(tmp_path, [genai_row(n, "leftvote" if n % 3 else "tievote", 15 + n % 7, 18) for n in range(30)])
    first, again, other = (report("genai-bench", tmp_path, tmp_path / "o", seed=seed) for seed in (0, 0, 1))
    assert to_json(first) == to_json(again)
    assert to_json(first)["outputs"] != to_json(other)["outputs"]


def test_json_holds_everything_and_no_nan(made):
    value = json.loads(json.dumps(to_json(made), allow_nan=False))
    assert value["data"]["rows"] == value["data"]["pairs"] == 41
    assert value["data"]["revision"] == "r"
    assert value["split"] == {
        "of": "sources with their instruction",
        "threshold_chosen_on": 20,
        "measured_on": 21,
        "seed": 0,
    }
    assert value["parts"] == {"all": {"pairs": 41, "ties": 21}}
    assert value["outputs"]["dark"]["figures"]["all"]["strict_accuracy"]["value"] == 0
    assert value["not_comparable"]


def test_the_table_has_every_figure(made):
    grid = table(made)
    labels = list(grid.columns[0].cells)
    assert [str(label).strip() for label in labels] == [
        "all, 21 ties",
        "strict accuracy",
        "accuracy without ties",
        "accuracy with ties, held out",
        "as published: with ties",
        "as published: without ties",
    ]
    assert "revision r" in str(grid.caption)


def test_rows_that_change_meanwhile_are_refused(tmp_path):
    path = write_jsonl(tmp_path, rows(2, sources=2))
    pairs = open_benchmark(BENCHMARKS["genai-bench"], path)
    write_jsonl(tmp_path, rows(2, sources=1))
    with pytest.raises(Exception, match="line 2: changed since it was opened"):
        pairs[1]


def test_the_checksum_is_of_images_and_verdicts(tmp_path):
    def checksum(changed):
        return open_benchmark(BENCHMARKS["genai-bench"], write_jsonl(tmp_path, [changed])).checksum

    first = genai_row(1, "leftvote", 1, 2)
    assert checksum(first) == checksum(first | {"left_model": "z"})
    assert (
        len({checksum(row) for row in (first, first | {"vote_type": "tievote"}, genai_row(1, "leftvote", 1, 3))}) == 3
    )
