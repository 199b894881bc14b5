"""Preference files are read lazily and in order, and every bad row is reported."""

import json
import os
import pickle
from pathlib import Path

import pytest
from PIL import Image

from jrm_service.images.decode import decode
from jrm_training import data
from jrm_training.data import DataError, Edit, Group, read_groups
from support import pictures

DIMENSIONS = ("instruction_following", "visual_quality")


def plain(color, size=(6, 4)) -> Image.Image:
    return Image.new("RGB", size, color)


def row(instruction="make it red", image="a.png", **changes) -> str:
    edits = [{"image": image, "labels": {"visual_quality": 4}}, {"image": "b.png", "labels": {"visual_quality": 1}}]
    return json.dumps({"source": "s.png", "instruction": instruction, "edits": edits} | changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(("s", "a", "b")):
        plain((number * 90, 10, 200)).save(tmp_path / f"{name}.png")
    return tmp_path


def written(folder: Path, *lines: str | bytes) -> Path:
    path = folder / "pairs.jsonl"
    path.write_bytes(b"\n".join(line.encode() if isinstance(line, str) else line for line in lines))
    return path


def problems_of(path: Path) -> list[tuple[int, str]]:
    with pytest.raises(DataError) as caught:
        read_groups(path, DIMENSIONS)
    return list(caught.value.problems)


# Reading


def test_groups_come_in_the_order_of_the_file(folder):
    groups = read_groups(written(folder, row("one"), row("two"), row("three")), DIMENSIONS)
    assert [group.instruction for group in groups] == ["one", "two", "three"]
    assert groups[-1].instruction == "three"
    with pytest.raises(IndexError):
        groups[3]


def test_images_are_those_that_the_server_would_see(folder):
    files = {"s.png": pictures.sixteen_bit_gray(), "a.png": pictures.transparent(), "b.png": pictures.rotated_by_exif()}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    [group] = read_groups(written(folder, row()), DIMENSIONS)
    assert [group.source, *(edit.image for edit in group.edits)] == [decode(content) for content in files.values()]


def test_a_row_has_a_path_a_list_of_paths_or_no_source(folder):
    for given, paths in (
        (None, []),
        ("s.png", ["s.png"]),
        (["s.png"], ["s.png"]),
        (["b.png", "s.png"], ["b.png", "s.png"]),
    ):
        [group] = read_groups(written(folder, row(source=given)), DIMENSIONS)
        assert group.sources == tuple(decode((folder / path).read_bytes()) for path in paths)
    absent = json.dumps({name: value for name, value in json.loads(row()).items() if name != "source"})
    assert read_groups(written(folder, absent), DIMENSIONS)[0].source is None
    bad = [[], 5, ["s.png", None], ["s.png", ["b.png"]], ["s.png", ""], "", ["s.png", "nothing.png"]]
    found = problems_of(written(folder, *(row(source=given) for given in bad)))
    assert [line for line, _ in found] == list(range(1, len(bad) + 1))
    assert all("source" in reason for _, reason in found)
    assert "source[1]" in found[-1][1]


def test_blank_lines_and_windows_line_ends_are_harmless(folder):
    groups = read_groups(written(folder, "", row("one") + "\r", "  \t\r", row("two"), ""), DIMENSIONS)
    assert [group.instruction for group in groups] == ["one", "two"]
    assert [groups.line(0), groups.line(1)] == [2, 4]


def test_an_absolute_path_is_taken_as_it_is(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "x.png"
    plain("red").save(elsewhere)
    [group] = read_groups(written(folder, row(image=str(elsewhere))), DIMENSIONS)
    assert group.edits[0].image == plain("red")


def test_paths_hold_when_the_working_directory_changes(folder, monkeypatch):
    written(folder, row())
    monkeypatch.chdir(folder)
    groups = read_groups("pairs.jsonl", DIMENSIONS)
    monkeypatch.chdir("/")
    assert len(groups[0].edits) == 2


def test_nothing_is_decoded_before_it_is_asked_for(folder):
    (folder / "a.png").write_bytes(b"no image")
    groups = read_groups(written(folder, row(image="b.png"), row()), DIMENSIONS)
    assert len(groups) == 2
    assert len(groups[0].edits) == 2
    with pytest.raises(DataError, match=r"line 2: edits\[0\]\.image: a\.png: not a PNG, JPEG, WebP or PPM image"):
        groups[1]


def test_an_image_that_has_gone_is_an_error_with_its_line(folder):
    groups = read_groups(written(folder, row()), DIMENSIONS)
    (folder / "s.png").unlink()
    with pytest.raises(DataError, match=r"line 1: source: s\.png: No such file"):
        groups[0]


def test_a_row_that_has_changed_is_an_error_with_its_line(folder):
    path = written(folder, row("one"), row("two"))
    groups = read_groups(path, DIMENSIONS)
    written(folder, row("one"), row("too"), row("three"))
    assert groups[0].instruction == "one"
    with pytest.raises(DataError, match="line 2: changed since"):
        groups[1]


def test_a_slice_reads_nothing_and_keeps_the_order(folder):
    groups = read_groups(written(folder, *(row(f"{number}") for number in range(6))), DIMENSIONS)
    (folder / "a.png").unlink()
    part = groups[4:1:-1]
    plain("blue").save(folder / "a.png")
    assert [group.instruction for group in part] == ["4", "3", "2"]
    assert part.compared == {"instruction_following": 0, "visual_quality": 3}


def test_a_dimension_that_no_row_compares_shows(folder):
    preferred = row(preferences={"instruction_following": "tie"})
    groups = read_groups(written(folder, row(), preferred), [*DIMENSIONS, "beauty"])
    assert groups.compared == {"instruction_following": 1, "visual_quality": 2, "beauty": 0}


def test_a_file_of_no_rows_is_an_empty_sequence(folder):
    assert len(read_groups(written(folder, ""), DIMENSIONS)) == 0


def test_workers_get_a_copy_that_works(folder):
    groups = read_groups(written(folder, "broken", row("one")), DIMENSIONS, skip_bad=True)
    copy = pickle.loads(pickle.dumps(groups))
    assert copy[0] == groups[0]
    assert copy.problems == groups.problems


def test_one_name_is_not_a_list_of_names(folder):
    with pytest.raises(TypeError, match="names of all dimensions"):
        read_groups(written(folder, row()), "visual_quality")


# Bad rows


def test_every_bad_row_is_reported_with_its_line(folder):
    path = written(folder, row(), '{"source"', "", row(image="c.png"), b"\xff", row().replace("4", "NaN"), row())
    assert problems_of(path) == [
        (2, "not JSON: Expecting ':' delimiter (column 10)"),
        (4, "edits[0].image: c.png: No such file or directory"),
        (5, "not UTF-8 (byte 0)"),
        (6, "NaN is not a JSON number"),
    ]


def test_good_rows_can_be_kept(folder):
    groups = read_groups(written(folder, row("one"), "{", row("two")), DIMENSIONS, skip_bad=True)
    assert [group.instruction for group in groups] == ["one", "two"]
    assert [problem.line for problem in groups.problems] == [2]


def test_the_message_lists_the_first_twenty(folder):
    path = written(folder, *["{"] * 23)
    with pytest.raises(DataError) as caught:
        read_groups(path, DIMENSIONS)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{path}: 23 bad rows"
    assert [line.split(":")[0] for line in lines[1:-1]] == [f"  line {number}" for number in range(1, 21)]
    assert lines[-1] == "  and 3 more"
    assert len(caught.value.problems) == 23


def test_the_error_survives_the_way_back_from_a_worker(folder):
    with pytest.raises(DataError) as caught:
        read_groups(written(folder, "{"), DIMENSIONS)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.problems) == (str(caught.value), caught.value.problems)


def test_a_row_after_an_overlong_one_is_found(folder):
    long = row("x" * (data.MAX_LINE_BYTES * 2))
    groups = read_groups(written(folder, row("one"), long, row("two")), DIMENSIONS, skip_bad=True)
    assert list(groups.problems) == [(2, "longer than 16 MiB")]
    assert groups[1].instruction == "two"


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (".", "not a regular file"),
        ("a.png/x", "Not a directory"),
        ("/dev/zero", "not a regular file"),
        ("pipe", "not a regular file"),
        ("empty", "0 bytes"),
        ("vast", "bytes, expected 1 to"),
        ("a\0.png", "null"),
        ("x" * 100_000, "File name too long"),
    ],
)
def test_what_is_no_image_file_is_found_at_once(folder, image, reason):
    os.mkfifo(folder / "pipe")
    (folder / "empty").touch()
    with (folder / "vast").open("wb") as file:
        file.truncate(data.MAX_IMAGE_BYTES + 1)
    [(line, found)] = problems_of(written(folder, row(image=image)))
    assert line == 1
    assert found.startswith("edits[0].image: ")
    assert reason in found
    assert len(found) < 300


# Groups


def test_the_ranking_is_the_labels_with_nan_for_none():
    group = Group(plain("red"), "x", (Edit(plain("red"), {"a": 3}), Edit(plain("red"))))
    assert group.ranking("a") == (3, pytest.approx(float("nan"), nan_ok=True))


@pytest.mark.parametrize(("preference", "sign"), [("first", 1), ("second", -1), ("tie", 0)])
def test_a_preference_overrides_the_labels(preference, sign):
    edits = (Edit(plain("red"), {"a": 2}), Edit(plain("red"), {"a": 2.5}))
    first, second = Group(plain("red"), "x", edits, {"a": preference}).ranking("a")
    assert (first > second) - (first < second) == sign


def test_a_preference_among_three_is_refused():
    with pytest.raises(ValueError, match="between two edits, this group has 3"):
        Group(plain("red"), "x", (Edit(plain("red")),) * 3, {"a": "tie"})


# Boxes


def test_a_box_of_the_annotators_prompt_becomes_x_first():
    assert data.x_first([10, 200, 30, 400]) == [200, 10, 400, 30]


@pytest.mark.parametrize("box", [[1, 2, 3], [30, 0, 10, 5], [0, 9, 10, 5], [0, 0, float("nan"), 1]])
def test_what_is_no_box_is_refused(box):
    with pytest.raises(ValueError, match="not \\[ymin, xmin, ymax, xmax\\]"):
        data.x_first(box)
