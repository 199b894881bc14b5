"""Groups are written as files that read back equal, or not at all."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from jrm_training import data
from jrm_training.data import Edit, Group, read_groups, write_groups
from support import pictures

DIMENSIONS = ("instruction_following", "visual_quality")


def plain(color, size=(6, 4)) -> Image.Image:
    return Image.new("RGB", size, color)


texts = st.text(min_size=1).filter(str.strip)
images = st.builds(
    lambda size, seed: pictures.photo(*size, seed=seed),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.integers(0, 3),
)
critiques = st.dictionaries(
    st.sampled_from(DIMENSIONS),
    texts | st.dictionaries(st.text(), texts, min_size=1).map(lambda value: json.dumps(value, ensure_ascii=False)),
)


@st.composite
def any_groups(draw: st.DrawFn) -> Group:
    known = draw(st.sets(st.sampled_from(DIMENSIONS), min_size=1))
    labels = st.fixed_dictionaries({name: st.floats(allow_nan=False, allow_infinity=False) for name in known})
    edits = draw(st.lists(st.builds(Edit, images, labels, critiques), min_size=2, max_size=4))
    verdicts = st.dictionaries(st.sampled_from(DIMENSIONS), st.sampled_from(["first", "second", "tie"]))
    sources = st.none() | images | st.lists(images, min_size=2, max_size=3).map(tuple)
    return Group(draw(sources), draw(texts), tuple(edits), draw(verdicts) if len(edits) == 2 else {})


@given(st.lists(any_groups(), max_size=3))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_is_written_is_read_back_equal(tmp_path_factory, groups):
    path = write_groups(tmp_path_factory.mktemp("set") / "new" / "pairs.jsonl", groups)
    assert list(read_groups(path, DIMENSIONS)) == groups


def a_group(instruction="x", critique="y") -> Group:
    edits = tuple(Edit(plain(color), {"a": 1}, {"a": critique}) for color in ("red", "red"))
    return Group(plain("blue"), instruction, edits)


def test_equal_images_are_one_file(tmp_path):
    write_groups(tmp_path / "train.jsonl", [a_group()])
    write_groups(tmp_path / "test.jsonl", [a_group("other")])
    assert len(list((tmp_path / "images").iterdir())) == 2
    assert len(read_groups(tmp_path / "train.jsonl", ["a"])) == 1


def test_the_same_groups_give_the_same_bytes(tmp_path):
    first, second = (write_groups(tmp_path / name / "pairs.jsonl", [a_group()]) for name in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_a_critique_that_is_an_object_is_written_as_one(tmp_path):
    path = write_groups(tmp_path / "pairs.jsonl", [a_group(critique='{"reasoning": "é"}')])
    assert json.loads(path.read_text(encoding="utf-8"))["edits"][0]["critiques"] == {"a": {"reasoning": "é"}}


def test_a_file_that_exists_is_refused_unless_asked(tmp_path):
    path = write_groups(tmp_path / "pairs.jsonl", [a_group("old")])
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write_groups(path, [a_group("new")])
    assert read_groups(path, ["a"])[0].instruction == "old"
    write_groups(path, [a_group("new")], overwrite=True)
    assert read_groups(path, ["a"])[0].instruction == "new"


def test_a_failure_leaves_the_file_that_was_there(tmp_path):
    def failing():
        yield a_group("new")
        raise RuntimeError("in the middle")

    path = write_groups(tmp_path / "pairs.jsonl", [a_group("old")])
    with pytest.raises(RuntimeError, match="in the middle"):
        write_groups(path, failing(), overwrite=True)
    assert read_groups(path, ["a"])[0].instruction == "old"
    assert {entry.name for entry in tmp_path.iterdir()} == {"images", "pairs.jsonl"}


@pytest.mark.parametrize(
    ("group", "reason"),
    [
        (Group(plain("red").convert("L"), "x", (Edit(plain("red"), {"a": 1}),) * 2), "mode L, expected RGB"),
        (Group(plain("red", (201, 1)), "x", (Edit(plain("red"), {"a": 1}),) * 2), "aspect ratio"),
        (Group(plain("red"), " ", (Edit(plain("red"), {"a": 1}),) * 2), "instruction: empty"),
        (Group(plain("red"), "\ud800", (Edit(plain("red"), {"a": 1}),) * 2), "instruction: not valid Unicode"),
        (Group(plain("red"), "x", (Edit(plain("red"), {"a": 1}),)), "edits: List should have at least 2"),
        (Group(plain("red"), "x", (Edit(plain("red"), {"a": float("nan")}),) * 2), r"edits\[0\].labels.a: .*finite"),
        (Group(plain("red"), "x", (Edit(plain("red"), {"a": 1}), Edit(plain("red")))), r"edits\[1\].labels: no a"),
        (a_group("x" * data.MAX_LINE_BYTES), "a row of .* bytes, over the limit"),
    ],
)
def test_what_the_format_cannot_hold_is_refused_with_its_index(tmp_path, group, reason):
    with pytest.raises(ValueError, match=rf"groups\[1\]: .*{reason}"):
        write_groups(tmp_path / "pairs.jsonl", [a_group(), group])
    assert not (tmp_path / "pairs.jsonl").exists()
