"""What a line may say, and that each mistake is named by its key."""

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jrm_training import rows

DIMENSIONS = ("instruction_following", "visual_quality")
GOOD = {
    "source": "s.png",
    "instruction": "make it red",
    "edits": [
        {"image": "a.png", "labels": {"instruction_following": 4, "visual_quality": 2.5}},
        {"image": "b.png", "labels": {"instruction_following": 1, "visual_quality": -3}},
    ],
}


def parse(row) -> rows.Row:
    return rows.parse_row(row if isinstance(row, bytes) else json.dumps(row).encode(), DIMENSIONS)


def with_(**changes):
    return GOOD | changes


def with_edit(**changes):
    row = copy.deepcopy(GOOD)
    row["edits"][1] |= changes
    return row


def with_critique(critique):
    return with_edit(critiques={"visual_quality": critique})


def with_label(text: str) -> bytes:
    return json.dumps(with_edit(labels={"visual_quality": "HERE"})).replace('"HERE"', text).encode()


NO_LABELS = [{"image": "a.png"}, {"image": "b.png"}]
BROKEN = {
    "truncated": (b'{"source": "s.p', "not JSON: Unterminated string starting at (column 12)"),
    "not an object": (b"[]", "not a JSON object"),
    "not UTF-8": (b'{"\xff": 1}', "not UTF-8 (byte 2)"),
    "nested too deeply": (b'{"a":' * 100_000, "nested too deeply"),
    "NaN": (with_label("NaN"), "NaN is not a JSON number"),
    "infinity": (with_label("-Infinity"), "-Infinity is not a JSON number"),
    "beyond float64": (with_label("1e999"), "the number 1e999 is too large"),
    "huge whole number": (with_label("1" + "0" * 400), "edits[1].labels.visual_quality: "),
    "label in quotes": (with_label('"4"'), "edits[1].labels.visual_quality: Input should be a valid number"),
    "label true": (with_label("true"), "edits[1].labels.visual_quality: Input should be a valid number"),
    "label null": (with_label("null"), "edits[1].labels.visual_quality: Input should be a valid number"),
    "key twice": (with_label('4, "visual_quality": 1'), "the key 'visual_quality' is there twice"),
    "key twice in a critique": (
        json.dumps(with_critique({"a": 1, "b": 2})).replace('"b"', '"a"').encode(),
        "the key 'a' is there twice",
    ),
    "unknown key": (with_(prompt="x"), "prompt: Extra inputs"),
    "unknown key of an edit": (with_edit(label={}), "edits[1].label: Extra inputs"),
    "empty list of sources": (with_(source=[]), "source: an empty list"),
    "no path among sources": (with_(source=["s.png", 5]), "source[1]: Input should be a valid string"),
    "source is a number": (with_(source=5), "source: Input should be a valid list"),
    "empty source": (with_(source=""), "source: empty"),
    "empty instruction": (with_(instruction=""), "instruction: empty"),
    "blank instruction": (with_(instruction=" \n"), "instruction: empty"),
    "instruction is a number": (with_(instruction=5), "instruction: Input should be a valid string"),
    "surrogate in the instruction": (with_(instruction="a\ud800"), "instruction has a lone surrogate"),
    "surrogate in a critique": (with_critique({"\ud800": 1}), "a key has a lone surrogate"),
    "one edit": (with_(edits=GOOD["edits"][:1]), "edits: List should have at least 2 items"),
    "unknown dimension of a label": (with_edit(labels={"beauty": 1}), "edits[1].labels.beauty: not a dimension"),
    "unknown dimension of a critique": (with_edit(critiques={"beauty": "x"}), "edits[1].critiques.beauty: not a dim"),
    "unknown dimension of a preference": (with_(preferences={"beauty": "tie"}), "preferences.beauty: not a dimension"),
    "unknown preference": (with_(preferences={"visual_quality": "left"}), "preferences.visual_quality: Input should"),
    "preference among three": (
        with_(edits=[*GOOD["edits"], GOOD["edits"][0]], preferences={"visual_quality": "tie"}),
        "preferences are between two edits, this row has 3",
    ),
    "half-labelled": (with_edit(labels={"visual_quality": 1}), "edits[1].labels: no instruction_following"),
    "nothing to learn": (with_(edits=NO_LABELS), "nothing to learn from"),
    "critique is a list": (with_critique(["x"]), "edits[1].critiques.visual_quality: a critique is text or a JSON"),
    "critique is empty": (with_critique(""), "edits[1].critiques.visual_quality: empty"),
    "critique is an empty object": (with_critique({}), "edits[1].critiques.visual_quality: empty"),
    "critique beyond float64": (
        json.dumps(with_critique({"a": "HERE"})).replace('"HERE"', "1e999").encode(),
        "the number 1e999 is too large",
    ),
    "too long": (b"x" * (rows.jsonl.MAX_LINE_BYTES + 1), "longer than 16 MiB"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_mistake_is_named(kind):
    row, reason = BROKEN[kind]
    with pytest.raises(ValueError, match=r".") as caught:
        parse(row)
    assert reason in str(caught.value)


def test_the_good_row_is_good():
    row = parse(GOOD)
    assert [edit.labels for edit in row.edits] == [edit["labels"] for edit in GOOD["edits"]]
    assert row.compared == set(DIMENSIONS)


def test_several_mistakes_of_a_row_are_told_together_up_to_five():
    with pytest.raises(ValueError, match=r"edits\[0\].image: Field required; .*edits\[4\].*; and 15 more$"):
        parse(with_(edits=[{}] * 20))


def test_hostile_text_is_quoted_short_and_without_control_characters():
    with pytest.raises(ValueError, match="Extra inputs") as caught:
        parse(with_(**{"\x1b[2J" + "x" * 10_000: 1}))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 250


def test_a_long_instruction_is_the_business_of_the_trainer():
    assert len(parse(with_(instruction="x" * 10**7)).instruction) == 10**7


def test_a_preference_stands_in_for_labels():
    row = parse(with_(edits=NO_LABELS, preferences={"visual_quality": "tie"}))
    assert row.compared == {"visual_quality"}


def test_a_preference_makes_half_a_label_harmless():
    labels = {"visual_quality": 1}
    assert parse(with_edit(labels=labels) | {"preferences": {"instruction_following": "first"}}).compared == {
        "instruction_following",
        "visual_quality",
    }


def test_critiques_alone_are_enough():
    row = parse(with_(edits=[{"image": "a.png"}, {"image": "b.png", "critiques": {"visual_quality": "blurred"}}]))
    assert row.compared == set()


def test_an_object_becomes_one_line_with_its_keys_in_order():
    row = parse(with_critique({"z": ["é", 1.5], "a": {"b": None}}))
    assert row.edits[1].critiques["visual_quality"] == '{"z": ["é", 1.5], "a": {"b": null}}'


def test_text_is_taken_as_it_is():
    assert parse(with_critique('  {"a":1}\n')).edits[1].critiques["visual_quality"] == '  {"a":1}\n'


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON, min_size=1, max_size=3))
@settings(deadline=None)
def test_what_the_language_head_writes_is_the_object(critique):
    assert json.loads(rows.critique_text(critique)) == critique
    assert rows.critique_value(rows.critique_text(critique)) == critique


@pytest.mark.parametrize(
    "text",
    ["plain", "[1]", "{}", '{"a":1}', '{"a": 1} ', '{"a": 1, "a": 2}', '{"a": NaN}', '{"a": 1.50}', '{"a":' * 50_000],
)
def test_text_that_an_object_would_not_become_stays_text(text):
    assert rows.critique_value(text) == text


@given(st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
@settings(deadline=None)
def test_no_line_raises_anything_but_value_error(line):
    with pytest.raises(ValueError, match=r"."):
        rows.parse_row(line, DIMENSIONS)
