"""docs/training-data.md against the reader: its row is valid, its messages and its programs are real."""

import json

import pytest
from PIL import Image

from docs import pages
from jrm_training import data, rows

PAGE = pages.DOCS / "training-data.md"
DIMENSIONS = ["instruction_following", "visual_quality"]
IMAGES = ("0.png", "0-a.png", "0-b.png")
[EXAMPLE] = pages.blocks(PAGE, "json")


def program(word: str, names: dict[str, object]) -> dict[str, object]:
    """The namespace of the one python block with ``word`` in it, after it has run with ``names`` in it."""
    [block] = [block for block in pages.blocks(PAGE, "python") if word in block]
    exec(compile(block, pages.name(PAGE), "exec"), names)
    return names


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    for name in IMAGES:
        Image.new("RGB", (8, 8), "red").save(tmp_path / "images" / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_row_on_the_page_is_valid(folder, capsys):
    (folder / "pairs.jsonl").write_text(json.dumps(json.loads(EXAMPLE)))
    names = program("group.ranking", {})
    assert names["groups"].compared == dict.fromkeys(DIMENSIONS, 1)
    assert "make the red square blue (8, 8) (2.0, 4.0)" in capsys.readouterr().out
    (folder / "images" / "0.png").write_bytes(b"damaged")
    program("except DataError", names)
    assert "line 1: source: images/0.png: not a PNG" in capsys.readouterr().out


def test_every_key_has_its_row():
    documented = {key for key, *_ in pages.table(PAGE, "key")}
    assert documented == set(rows.Row.model_fields) | {f"edits[].{name}" for name in rows.EditRow.model_fields}


def test_the_report_on_the_page_is_what_is_printed(folder):
    good = json.loads(EXAMPLE)
    missing, unknown = json.loads(EXAMPLE), json.loads(EXAMPLE)
    missing["edits"][1]["image"] = "images/1-b.png"
    unknown["edits"][0]["labels"]["beauty"] = 1
    lines = [json.dumps(one) for one in (good, missing, good, good, unknown)]
    lines[2] = lines[2].replace(": 4", ": NaN", 1)
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    with pytest.raises(data.DataError) as caught:
        data.read_groups("pairs.jsonl", DIMENSIONS)
    [block] = [block for block in pages.blocks(PAGE, "") if "bad rows" in block]
    assert str(caught.value).replace(f"{folder}/", "") == block.strip()


def test_pairs_of_a_published_set_become_rows(folder):
    scores = {f"{side}_{name}": score for side, score in (("left", 1), ("right", 3)) for name in DIMENSIONS}
    paths = dict(zip(("source_path", "left_path", "right_path"), (f"images/{name}" for name in IMAGES), strict=True))
    pairs = [{"prompt": "x", "preferred": verdict, **paths, **scores} for verdict in ("left", None)]
    program("verdicts", {"pairs": pairs})
    preferred, scored = data.read_groups("pairs.jsonl", DIMENSIONS)
    assert preferred.ranking("instruction_following") == (1, 0)
    assert preferred.ranking("visual_quality") == scored.ranking("instruction_following") == (1, 3)


def test_boxes_are_turned():
    answer = json.dumps({"edit_region": [{"id": 0, "bbox_2d": [10, 200, 30, 400]}]})
    assert program("x_first", {"answer": answer})["critique"]["edit_region"][0]["bbox_2d"] == [200, 10, 400, 30]


def test_the_numbers():
    text = pages.prose(PAGE).replace("\n", " ")
    assert f"rows of over {rows.jsonl.MAX_LINE_BYTES >> 20} MiB" in text
    assert f"1 byte to {data.MAX_IMAGE_BYTES >> 20} MiB" in text
    assert f"the first {data.MAX_LISTED}" in text
