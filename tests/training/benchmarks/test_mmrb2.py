"""MMRB2's edit.json, with numbers worked out by hand."""

import pytest

from jrm_training.benchmarks.catalog import BENCHMARKS
from jrm_training.benchmarks.pairs import open_benchmark
from support.benchmark_files import BROKEN, gray, mmrb2_pair, report, source, values, write_mmrb2

PAIRS = [
    mmrb2_pair(1, "A", 7, 5),  # right
    mmrb2_pair(2, "B", 4, 5),  # right
    mmrb2_pair(3, "A", 5, 5),  # a tie, wrong in both orders
    mmrb2_pair(4, "B", 8, 5, sources=3),  # wrong
    mmrb2_pair(5, "A", 9, BROKEN, sources=2),  # no score: not counted
]


@pytest.fixture
def made(tmp_path):
    write_mmrb2(tmp_path / "benchmark", PAIRS)
    return report("mmrb2", tmp_path, tmp_path / "o")


def test_the_published_formula(made):
    """Two of four pairs with scores are right, in both orders: 4 of 8 judgements."""
    figure = made.outputs["reward"].figures["all"]["published_accuracy"]
    assert (figure.value, figure.count) == (1 / 2, 8)
    assert made.failed == {"internal": 1}


def test_one_source_and_several(made):
    assert values(made, "all/one source")["published_accuracy"] == pytest.approx(2 / 3)
    assert values(made, "all/several sources")["published_accuracy"] == 0
    assert values(made, "all/emu-edit")["strict_accuracy"] == pytest.approx(2 / 3)


def test_all_sources_are_scored_in_their_order(tmp_path):
    pairs = open_benchmark(BENCHMARKS["mmrb2"], write_mmrb2(tmp_path, PAIRS))
    assert [image.getpixel((0, 0))[0] for image in pairs[3].sources] == [40, 41, 42]
    assert pairs[3].instruction == "edit 4"


def test_the_name_may_be_that_of_the_readme(tmp_path):
    pair = {("pair_id" if key == "id" else key): value for key, value in PAIRS[0].items()}
    assert len(open_benchmark(BENCHMARKS["mmrb2"], write_mmrb2(tmp_path, [pair]))) == 1


BAD = {
    "chosen: expected A or B": {"chosen": "C"},
    "prompt_content: no image": {"prompt_content": [["text", "edit"]]},
    "prompt_content: no text": {"prompt_content": [["image", source(1)]]},
    'prompt_content: expected ["text" or "image", value]': {"prompt_content": [["video", "x"]]},
    "response_b: missing": {"response_b": None},
    "response_a: 2 images": {"response_a": {"response_content": [["image", gray(1)], ["image", gray(2)]]}},
    "response_a: 1 images and text": {"response_a": {"response_content": [["image", gray(1)], ["text", "see"]]}},
    "No such file": {"response_a": {"response_content": [["image", "nowhere.png"]]}},
}


def test_bad_pairs_are_all_named(tmp_path):
    path = write_mmrb2(tmp_path, [PAIRS[0] | change for change in BAD.values()])
    with pytest.raises(Exception, match="8 bad rows of 8") as raised:
        open_benchmark(BENCHMARKS["mmrb2"], path)
    missing = [reason for reason in BAD if reason not in str(raised.value)]
    assert not missing, str(raised.value)
    assert "edit.json pairs[7]" in str(raised.value)
