"""The study around the corrector: which edits, which control, and what the tables say."""

import math

import numpy as np
import pytest
from PIL import Image

import self_correction
from jrm_client import Explanation, Score
from jrm_client.results import Dimension
from self_correction import LEVELS, Outcome, Sample, outcome, report, samples, shuffled


@pytest.fixture(scope="module")
def poor():
    return samples(6, seed=5)


def score(following, quality):
    dimensions = {"instruction_following": Dimension(following, 0.1), "visual_quality": Dimension(quality, 0.1)}
    return Score((following + quality) / 2, 0.1, dimensions, False, "m", "f")


def test_as_many_of_each_level_and_no_two_of_one_group(poor):
    assert [sample.level for sample in poor] == [level for level in LEVELS for _ in range(6)]
    assert len({sample.source.tobytes() for sample in poor}) == len(poor)


def test_the_right_edit_is_known_for_some_and_for_no_addition(poor):
    known = [sample for sample in poor if sample.right is not None]
    assert known
    for sample in known:
        assert not sample.instruction.lower().startswith(("add", "put a", "draw", "insert", "there should also"))
        assert sample.right.size == sample.edited.size
        assert sample.right.tobytes() != sample.edited.tobytes()


def test_the_control_has_the_critique_of_another_sample_of_the_same_level(poor):
    own = [{"visual_quality": Explanation(status="ok", reasoning=str(number))} for number in range(len(poor))]
    for number, given in enumerate(shuffled(own, poor)):
        other = int(given["visual_quality"].reasoning)
        assert other != number
        assert poor[other].level == poor[number].level


def test_gains_are_after_minus_before_and_distances_before_minus_after():
    white, grey = Image.new("RGB", (8, 8), "white"), Image.new("RGB", (8, 8), (245, 245, 245))
    two = [Sample(white, grey, "i", 1, right) for right in (white, None)]
    found = outcome(two, [white, white], [score(0, 0), score(1, 2)], [score(1, 0), score(0, 1)])
    assert found.gains["reward"].tolist() == [0.5, -1.0]
    assert found.gains["instruction_following"].tolist() == [1, -1]
    assert found.nearer[0] == 10
    assert math.isnan(found.nearer[1])


def test_the_table_has_each_level_and_counts_what_improved(poor):
    n = len(poor)
    own = Outcome({"reward": np.where(np.arange(n) % 2, 1.0, -1.0)}, np.full(n, math.nan))
    none = Outcome({"reward": np.zeros(n)}, np.full(n, math.nan))
    text = report(poor, own, none)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line]
    assert [row[0] for row in rows[2:7]] == ["1 to 2", "1", "2", "3", "all"]
    assert [row[1] for row in rows[2:7]] == ["12", "6", "6", "6", "18"]
    assert rows[6][2].startswith("+0.00 [-")
    assert rows[6][3].startswith("50% [")
    assert rows[6][4:] == ["+0.00 [+0.00, +0.00]", "0% [0%, 0%]"]
    assert rows[-1][1:] == ["0", "–", "–", "–", "–"]


def test_the_page_keeps_what_stands_around_the_tables(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{self_correction.BEGIN}\nold\n{self_correction.END}\nafter\n")
    self_correction.put(page, "new\n")
    assert page.read_text() == f"before\n{self_correction.BEGIN}\nnew\n{self_correction.END}\nafter\n"
    page.write_text("no marks")
    with pytest.raises(ValueError, match="has no <!-- self-correction -->"):
        self_correction.put(page, "new\n")
