"""TIGER-Lab/EditReward-Bench, with numbers worked out by hand."""

import pytest

from jrm_training.benchmarks.catalog import BENCHMARKS
from jrm_training.benchmarks.pairs import open_benchmark
from support.benchmark_files import BROKEN, editreward_row, ranking_rows, report, values, write_jsonl, write_parquet

# The score is the gray level, so the difference of a pair is that of its last two numbers.
TWO = [
    editreward_row("68cbb25e01", "2pair", "AvsB", "A>B", 9, 5),  # 4
    editreward_row("68cbb25e02", "2pair", "AvsB", "B>A", 4, 5),  # -1
    editreward_row("68cbb25e03", "2pair", "AvsB", "A=B", 7, 5),  # 2
    editreward_row("68cbb25e04", "2pair", "AvsB", "A=B", 5, 7),  # -2
    editreward_row("68cbb25e05", "2pair", "AvsB", "A=B", 5, 5),  # 0
    editreward_row("68cbb25e06", "2pair", "AvsB", "A>B", 2, 5),  # -3
]
THREE = [
    *ranking_rows("g1", "3pair", {"A": 9, "B": 5, "C": 1}, "ABC"),
    *ranking_rows("g2", "3pair", {"A": 5, "B": 5, "C": 1}, "BAC"),  # A and B score alike
]
FOUR = ranking_rows("g1", "4pair", {"A": 9, "B": 7, "C": 5, "D": 1}, "ABDC")  # people put D before C


@pytest.fixture
def made(tmp_path):
    write_parquet(tmp_path / "data" / "train-00000-of-00001.parquet", [*TWO, *THREE, *FOUR], row_group_size=4)
    return report("editreward", tmp_path, tmp_path / "scores.out")


def test_pairs_with_ties(made):
    """Right of 6 pairs, by threshold: 0: 3 (4, -1, 0); 1: 2; 2: 4 (4, 2, -2, 0); 3: 4; 4: 3. The best is 4/6, at 2."""
    figures = values(made, "2pair")
    assert figures["published_pairwise"] == pytest.approx(4 / 6)
    # The ranking of that code takes any difference as an order, and its threshold for human ties: all but the last.
    assert figures["published_ranking"] == pytest.approx(5 / 6)
    # Ties wrong: 4 and -1 are right, of 6 pairs, or of the 3 that people decided.
    assert figures["strict_accuracy"] == pytest.approx(2 / 6)
    assert figures["accuracy_without_ties"] == pytest.approx(2 / 3)


def test_rankings_of_three(made):
    """Of 6 pairs one is equal and wrong. With it a group fails; its sort puts the later of two equal ones first."""
    figures = values(made, "3pair")
    assert figures["published_pairwise"] == pytest.approx(5 / 6)
    assert figures["published_group"] == 1 / 2
    assert figures["published_ranking"] == 2 / 2
    assert made.outputs["reward"].figures["3pair"]["published_group"].count == 2


def test_rankings_of_four(made):
    """Five of six pairs are in order, so the group is not."""
    assert values(made, "4pair")["published_pairwise"] == pytest.approx(5 / 6)
    assert values(made, "4pair")["published_group"] == 0
    assert values(made, "4pair")["published_ranking"] == 0


def test_everything_together(made):
    """Rankings: 5 + 2 + 0 of 6 + 2 + 1. Pairs, one threshold for all: 0: 3 + 5 + 5 of 18; 1: 12; 2: 4 + 5 + 3."""
    figures = values(made, "all")
    assert figures["published_ranking"] == pytest.approx(7 / 9)
    assert figures["published_pairwise"] == pytest.approx(13 / 18)
    assert made.outputs["reward"].figures["all"]["published_ranking"].count == 9


def test_a_group_that_lacks_a_pair_is_wrong_as_in_the_published_code(tmp_path):
    write_jsonl(tmp_path, [*THREE[:2], *ranking_rows("g3", "3pair", {"A": 9, "B": 5, "C": 1}, "ABC")])
    made = report("editreward", tmp_path, tmp_path / "o")
    assert values(made, "3pair")["published_group"] == 1 / 2
    assert any("1 groups have more or fewer pairs" in note for note in made.notes)


def test_a_group_that_a_limit_cuts_is_in_no_figure(tmp_path):
    write_jsonl(tmp_path, THREE)
    made = report("editreward", tmp_path, tmp_path / "o", limit=5)
    assert made.outputs["reward"].figures["3pair"]["published_group"].count == 1
    assert made.notes[0].startswith("5 of 6 rows")


def test_a_group_with_an_edit_without_a_score_is_wrong(tmp_path):
    write_jsonl(tmp_path, [*THREE[:3], *ranking_rows("g4", "3pair", {"A": 9, "B": 5, "C": BROKEN}, "ABC")])
    made = report("editreward", tmp_path, tmp_path / "o")
    assert values(made, "3pair")["published_group"] == 1 / 2
    assert made.failed == {"internal": 2}
    assert made.outputs["reward"].figures["3pair"]["strict_accuracy"].count == 4


def test_rows_without_an_underscore_belong_together_by_ten_characters(tmp_path):
    """As in the published code: two rankings whose ids begin alike become one, of six pairs, which is wrong."""
    rows = ranking_rows("68cbb25ec2", "3pair", {"A": 9, "B": 5, "C": 1}, "ABC")
    for number, row in enumerate(rows):
        row["id"] = f"68cbb25ec2{number}"
    write_jsonl(tmp_path, rows)
    assert values(report("editreward", tmp_path, tmp_path / "o"), "3pair")["published_group"] == 1
    write_jsonl(tmp_path, [*rows, *[row | {"id": f"{row['id']}-too"} for row in rows]])
    assert values(report("editreward", tmp_path, tmp_path / "p"), "3pair")["published_group"] == 0


def test_repetitions_and_contradictions_are_told(tmp_path):
    contrary = TWO[0] | {"ranking": "B>A"}
    write_jsonl(tmp_path, [TWO[0], TWO[1], contrary])
    (note,) = report("editreward", tmp_path, tmp_path / "o").notes
    assert note.startswith("1 rows repeat another (1 comparisons have verdicts that contradict each other)")
    assert "rows.jsonl line 3" in note


BAD = {
    "dataset: expected one of 2pair": {"dataset": "5pair"},
    "comparison_type: BvsA is no comparison": {"comparison_type": "BvsA"},
    "comparison_type: AvsD is no comparison of a 3pair": {"comparison_type": "AvsD"},
    "ranking: A>C is no verdict on A and B": {"ranking": "A>C"},
    "candidate_2: missing": {"candidate_2": None},
    "id: expected text, got int": {"id": 7},
}


def test_bad_rows_are_all_named(tmp_path):
    rows = [THREE[0], *(THREE[0] | change for change in BAD.values())]
    path = write_jsonl(tmp_path, rows)
    with pytest.raises(Exception, match="6 bad rows of 7") as raised:
        open_benchmark(BENCHMARKS["editreward"], path)
    missing = [reason for reason in BAD if reason not in str(raised.value)]
    assert not missing, str(raised.value)
    left = open_benchmark(BENCHMARKS["editreward"], path, skip_bad=True)
    assert (len(left), len(left.problems)) == (1, 6)
