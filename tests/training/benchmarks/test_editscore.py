"""EditScore/EditReward-Bench, with numbers worked out by hand."""

import pytest
from PIL import Image

from jrm_training.benchmarks.catalog import BENCHMARKS
from jrm_training.benchmarks.pairs import open_benchmark
from support.benchmark_files import editscore_row, gray, report, values, write_jsonl, write_parquet
from support.pictures import encode

# In every row the first edit is the preferred one, and the score is the gray level.
ROWS = [
    # prompt following, colours: right, equal (wrong), wrong: 1/3. Texts: right: 1/1.
    editscore_row(1, "prompt_following", "color_alter", 9, 1),
    editscore_row(2, "prompt_following", "color_alter", 5, 5),
    editscore_row(3, "prompt_following", "color_alter", 2, 7),
    editscore_row(4, "prompt_following", "text_change", 8, 7),
    # overall: add 1/1, remove 0/1, replace 1/2, colours 1/1
    editscore_row(5, "overall", "subject-add", 3, 2),
    editscore_row(6, "overall", "subject-remove", 2, 3),
    editscore_row(7, "overall", "subject-replace", 3, 2),
    editscore_row(8, "overall", "subject-replace", 1, 3),
    editscore_row(1, "overall", "color_alter", 9, 1),
]


@pytest.fixture(params=["jsonl", "parquet"])
def made(request, tmp_path):
    if request.param == "jsonl":
        write_jsonl(tmp_path, ROWS)
    else:
        write_parquet(tmp_path / "data" / "train-00000-of-00002.parquet", ROWS[:5])
        write_parquet(tmp_path / "data" / "train-00001-of-00002.parquet", ROWS[5:])
    return report("editscore", tmp_path, tmp_path / "scores.out")


def test_the_average_is_over_kinds_of_edits(made):
    following, overall = values(made, "prompt_following"), values(made, "overall")
    assert following["published_average"] == pytest.approx((1 / 3 + 1) / 2)
    assert following["strict_accuracy"] == 2 / 4
    assert overall["published_average"] == pytest.approx((1 + 0 + 1 / 2 + 1) / 4)
    assert overall["strict_accuracy"] == 3 / 5


def test_a_field_has_an_average_when_all_of_its_kinds_are_there(made):
    assert values(made, "overall")["published_object"] == pytest.approx((1 + 0 + 1 / 2) / 3)
    assert not {"published_scene", "published_appearance", "published_advanced"} & values(made, "overall").keys()


def test_each_kind_of_edit(made):
    figures = {
        part.partition("/")[2]: values(made, part)["strict_accuracy"]
        for part in made.parts
        if part.startswith("overall/")
    }
    assert figures == {"subject-add": 1, "subject-remove": 0, "subject-replace": 1 / 2, "color_alter": 1}


def test_every_output_has_its_own_figures(made):
    # "dark" ranks the other way round; of the four pairs one is equal: 1 right
    assert values(made, "prompt_following", "dark")["strict_accuracy"] == 1 / 4
    assert values(made, "prompt_following", "bright") == values(made, "prompt_following")


def test_edits_take_the_size_of_their_source(tmp_path):
    large = editscore_row(1, "overall", "extract", 3, 2, input_image=encode(Image.new("RGB", (20, 10))))
    pairs = open_benchmark(BENCHMARKS["editscore"], write_jsonl(tmp_path, [large]))
    assert [edit.image.size for edit in pairs[0].edits] == [(20, 10)] * 2


BAD = {
    "dimension: expected one of": {"dimension": "beauty"},
    "task_type: missing": {"task_type": None},
    "task_type: drawing": {"task_type": "drawing"},
    "output_images: expected 2 items, got 1": {"output_images": [gray(1)]},
    "output_images[1]: no image": {"output_images": [gray(1), None]},
    "instruction: empty": {"instruction": " "},
    "input_image: 'nowhere.png'": {"input_image": "nowhere.png"},
    "edit 0: not a PNG": {"output_images": [b"no image", gray(1)]},
    "key: expected a list": {"key": "a"},
}


@pytest.mark.parametrize(("reason", "change"), BAD.items(), ids=BAD)
def test_a_bad_row_is_named(tmp_path, reason, change):
    path = write_jsonl(tmp_path, [ROWS[0], editscore_row(2, "overall", "extract", 1, 2) | change])
    with pytest.raises(Exception, match=r"1 bad rows of 2(.|\n)*rows.jsonl line 2") as raised:
        open_benchmark(BENCHMARKS["editscore"], path)
    assert reason.replace("'", "") in str(raised.value).replace("'", "")
