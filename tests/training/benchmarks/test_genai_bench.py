"""GenAI-Bench's image editing, with numbers worked out by hand."""

import pytest

from jrm_training.benchmarks.catalog import BENCHMARKS
from jrm_training.benchmarks.pairs import open_benchmark
from support.benchmark_files import genai_row, report, values, write_jsonl, write_parquet

ROWS = [
    genai_row(1, "leftvote", 8, 5),  # 3, right
    genai_row(2, "bothbad_vote", 6, 5),  # 1, a tie
    genai_row(3, "leftvote", 6, 5),  # 1, right
    genai_row(4, "rightvote", 7, 5),  # 2, wrong
]


def test_the_published_formula(tmp_path):
    """Two pairs are in order. The walk calls ties, by size: both bad (3 right of 4), left (2), right (2), left (1).

    Its best is seen between two pairs of equal size: no threshold reaches it. At 0 two are right, at 1 two (the first
    and the tie), at 2 and 3 fewer.
    """
    write_jsonl(tmp_path, ROWS)
    figures = values(report("genai-bench", tmp_path, tmp_path / "o"), "all")
    assert figures["published_with_ties"] == 3 / 4
    assert figures["published_without_ties"] == pytest.approx(2 / 3)
    assert figures["strict_accuracy"] == 2 / 4


def test_only_its_image_edits_are_read(tmp_path):
    write_parquet(tmp_path / "image_edition" / "test_v1-00000-of-00001.parquet", ROWS)
    write_parquet(tmp_path / "image_edition" / "test-00000-of-00001.parquet", [{"other": 1}])
    write_parquet(tmp_path / "video_generation" / "test_v1-00000-of-00001.parquet", [{"other": 1}])
    assert len(open_benchmark(BENCHMARKS["genai-bench"], tmp_path)) == 4


def test_both_kinds_of_ties_are_one(tmp_path):
    write_jsonl(tmp_path, [genai_row(1, "tievote", 5, 5), genai_row(2, "bothbad_vote", 5, 5)])
    made = report("genai-bench", tmp_path, tmp_path / "o")
    assert made.parts["all"].ties == 2
    assert values(made, "all")["published_with_ties"] == 1


def test_bad_rows_are_all_named(tmp_path):
    path = write_jsonl(tmp_path, [ROWS[0] | {"vote_type": "A"}, ROWS[0] | {"right_output_image": None}])
    with pytest.raises(Exception, match="2 bad rows of 2") as raised:
        open_benchmark(BENCHMARKS["genai-bench"], path)
    assert "vote_type: expected one of leftvote" in str(raised.value)
    assert "right_output_image: missing" in str(raised.value)
