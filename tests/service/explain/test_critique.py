"""From what the language head wrote to an explanation: whole, cut, and wrong."""

import json

from hypothesis import given
from hypothesis import strategies as st

from jrm_client.protocol import ExplainUsage
from jrm_service.explain.critique import read, schema
from support.cases import each

USAGE = ExplainUsage(prompt_tokens=5, completion_tokens=7)
REASONING = "<|global|> good. <|bbox_0|> A circle was added. <|bbox_1|> A hat is gone. <|global|> The rest is kept."
REGIONS = [
    {"id": 0, "label": "circle", "bbox_2d": [120, 80, 400, 360]},
    {"id": 1, "label": "hat", "bbox_2d": [0, 500, 1000, 1000]},
]
WHOLE = json.dumps({"reasoning": REASONING, "edit_region": REGIONS})


def explain(raw: str, *, regions: bool = True, cut: bool = False, size: tuple[int, int] = (128, 128)):
    return read(raw, regions=regions, size=size, finish_reason="length" if cut else "stop", usage=USAGE)


def test_a_critique_with_regions():
    found = explain(WHOLE)
    assert (found.status, found.finish_reason, found.usage, found.raw) == ("ok", "stop", USAGE, WHOLE)
    assert found.reasoning == REASONING
    assert [(one.region, one.text) for one in found.segments] == [
        ("global", "good."),
        (0, "A circle was added."),
        (1, "A hat is gone."),
        ("global", "The rest is kept."),
    ]
    assert [(one.id, one.label, one.bbox_2d) for one in found.edit_regions] == [
        (0, "circle", (120, 80, 400, 360)),
        (1, "hat", (0, 500, 1000, 1000)),
    ]


def test_boxes_in_the_images_own_pixels():
    assert [one.bbox_pixels for one in explain(WHOLE, size=(128, 64)).edit_regions] == [
        (15, 5, 51, 23),
        (0, 32, 128, 64),
    ]


@each(
    ("box", "expected"),
    [
        ([400, 360, 120, 80], (120, 80, 400, 360)),
        ([-20, 10, 1200, 90.5], (0, 10, 1000, 90.5)),
        ([500, 500, 500, 600], None),
        ([1001, 0, 1100, 10], None),
    ],
    ids=["corners swapped", "outside", "no width", "all outside"],
)
def test_boxes_are_put_into_the_image_or_left_out(box, expected):
    raw = json.dumps({"reasoning": "x", "edit_region": [{"id": 0, "label": "a", "bbox_2d": box}]})
    found = explain(raw)
    assert found.status == "ok"
    assert [one.bbox_2d for one in found.edit_regions] == ([] if expected is None else [expected])


@given(st.integers(0, 999), st.integers(1, 1000), st.integers(1, 3000))
def test_pixels_lie_inside_and_have_an_area(low, length, side):
    raw = json.dumps(
        {"reasoning": "x", "edit_region": [{"id": 0, "label": "a", "bbox_2d": [low, low, low + length, low + length]}]}
    )
    (region,) = explain(raw, size=(side, 7)).edit_regions
    left, top, right, bottom = region.bbox_pixels
    assert 0 <= left < right <= side
    assert 0 <= top < bottom <= 7


def test_a_critique_without_regions_is_one_segment_without_tags():
    found = explain('{"reasoning": "<|global|> clean. <|bbox_0|> sharp."}', regions=False)
    assert found.status == "ok"
    assert [(one.region, one.text) for one in found.segments] == [("global", "clean. sharp.")]
    assert found.edit_regions == []


def test_text_before_the_first_tag_is_about_the_image():
    found = explain('{"reasoning": "All well. <|bbox_7|> Here too.", "edit_region": []}')
    assert [(one.region, one.text) for one in found.segments] == [("global", "All well."), (7, "Here too.")]


@each("length", range(len(WHOLE)))
def test_one_that_was_cut_keeps_what_was_complete(length):
    found = explain(WHOLE[:length], cut=True)
    assert found.status == "truncated"
    assert REASONING.startswith(found.reasoning)
    assert all(one.bbox_2d in ((120, 80, 400, 360), (0, 500, 1000, 1000)) for one in found.edit_regions)
    assert len(found.edit_regions) == WHOLE[:length].count("}")
    assert not any("<|" in one.text for one in found.segments)


@each(
    "raw",
    [
        "",
        "nonsense",
        WHOLE + "}",
        "[1, 2]",
        '{"reasoning": 3, "edit_region": []}',
        '{"reasoning": "x", "edit_region": [{"id": 0, "label": "a", "bbox_2d": [1, 2, 3]}]}',
        '{"reasoning": "x", "edit_region": [{"id": 0, "label": "a", "bbox_2d": [1, 2, 3, NaN]}]}',
    ],
)
def test_one_that_cannot_be_read_is_an_error_and_keeps_its_text(raw):
    found = explain(raw)
    assert found.status == "error"
    assert found.error.code == "invalid_critique"
    assert found.raw == raw
    assert len(found.error.message) < 300


@given(st.text(), st.booleans(), st.booleans())
def test_whatever_is_written_is_never_an_exception(raw, regions, cut):
    assert explain(raw, regions=regions, cut=cut).status in ("truncated" if cut else "ok", "error")


def test_the_schema_is_what_the_world_writes():
    assert schema(False)["required"] == ["reasoning"]
    assert schema(True)["required"] == ["reasoning", "edit_region"]
    assert schema(True)["properties"]["edit_region"]["items"]["required"] == ["id", "label", "bbox_2d"]
