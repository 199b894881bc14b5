import json

import pytest
from PIL import Image

from jrm_service.scoring.types import Dimension, Score
from jrm_training.data import Edit, Group
from jrm_training.evaluate_results import EvaluationError, Failed, ResultsFile, inputs_hash

SCORE = Score(0.1 + 0.2, 0.25, {"a": Dimension(1 / 3, 0.25), "b": Dimension(-1e-9, None)})
FAILED = Failed("internal", "it broke")


def group(source="red", edited="blue", instruction="make it blue", label=1.0, size=(4, 3)) -> Group:
    edit = Edit(Image.new("RGB", size, edited), {"a": label})
    return Group(Image.new("RGB", (4, 3), source), instruction, (edit,))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "scores.jsonl"


def results(path, fingerprint="f00d") -> ResultsFile:
    return ResultsFile(path, "model", fingerprint)


@pytest.mark.parametrize(
    "other",
    [group(source="blue"), group(edited="red"), group(instruction="make it red"), group(size=(3, 4))],
    ids=["source", "edit", "instruction", "size"],
)
def test_the_hash_is_of_everything_that_is_scored(other):
    assert inputs_hash(other) != inputs_hash(group())


def test_the_hash_is_not_of_labels():
    assert inputs_hash(group(label=4.0)) == inputs_hash(group())


def test_scores_come_back_to_the_last_bit(path):
    results(path).append(3, "abc", [SCORE, SCORE])
    assert results(path).get(3, "abc", 2) == (SCORE, SCORE)


def test_a_group_that_is_not_there(path):
    results(path).append(3, "abc", [SCORE])
    assert results(path).get(2, "abc", 1) is None


def test_a_group_with_a_failure_is_to_be_scored_again_and_the_new_row_counts(path):
    results(path).append(0, "abc", [SCORE, FAILED])
    again = results(path)
    assert again.get(0, "abc", 2) is None
    again.append(0, "abc", [SCORE, SCORE])
    assert results(path).get(0, "abc", 2) == (SCORE, SCORE)


def test_the_row_of_a_failure_says_why(path):
    results(path).append(0, "abc", [FAILED])
    assert json.loads(path.read_text())["edits"] == [
        {"status": "error", "error": {"code": "internal", "message": "it broke"}}
    ]


def test_another_fingerprint_is_refused(path):
    results(path).append(0, "abc", [SCORE])
    with pytest.raises(EvaluationError, match="scores of the checkpoint f00d, this one is beef"):
        results(path, "beef")


@pytest.mark.parametrize(("inputs", "edits"), [("abd", 1), ("abc", 2)])
def test_other_inputs_are_refused(path, inputs, edits):
    results(path).append(0, "abc", [SCORE])
    with pytest.raises(EvaluationError, match="group 0 has scores of other images"):
        results(path).get(0, inputs, edits)


@pytest.mark.parametrize("cut", [1, 50, 150])
def test_a_torn_last_line_is_cut_off(path, cut):
    results(path).append(0, "abc", [SCORE])
    whole = path.read_bytes()
    results(path).append(1, "abd", [SCORE])
    path.write_bytes(path.read_bytes()[:-cut])
    assert results(path).get(1, "abd", 1) is None
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "content",
    [
        b"torn words of somebody else",
        b'{"line": 1}\n',
        b"[]\n",
        b"\xff\xfe\n",
        b'{"index": 0, "inputs": "a", "fingerprint": "f00d", "edits": [{"status": "ok", "reward": NaN, '
        b'"reward_std": null, "dimensions": {}}]}\n',
    ],
)
def test_somebody_elses_file_is_refused_and_left_alone(path, content):
    path.write_bytes(content)
    with pytest.raises(EvaluationError, match="use another --out"):
        results(path)
    assert path.read_bytes() == content
