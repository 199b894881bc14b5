"""Completions and columns of a data set -> candidates."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jrm_client.trainers.columns import Columns
from support.cases import each

TWO = ["first", "second"]
COLUMNS = {"source": [b"S0", b"S1"], "instruction": ["red", "blue"], "trainer_state": object()}


def test_a_function_draws_each_completion() -> None:
    assert Columns(edited=str.encode).pairs(TWO, COLUMNS) == [(b"S0", b"first", "red"), (b"S1", b"second", "blue")]


def test_a_column_may_hold_the_edits() -> None:
    pairs = Columns(edited="edit").pairs(TWO, {**COLUMNS, "edit": [b"A", b"B"]})
    assert pairs == [(b"S0", b"A", "red"), (b"S1", b"B", "blue")]


def test_the_columns_may_have_other_names() -> None:
    columns = Columns(edited=str.encode, source="images", instruction="prompt")
    assert columns.pairs(["A"], {"images": [b"S"], "prompt": ["red"]}) == [(b"S", b"A", "red")]


def test_a_completion_may_have_no_picture() -> None:
    assert Columns(edited={"first": b"A"}.get).pairs(TWO, COLUMNS) == [(b"S0", b"A", "red"), None]


def test_a_text_to_image_checkpoint_takes_no_source() -> None:
    assert Columns(edited=str.encode, source=None).pairs(["A"], {"instruction": ["red"]}) == [(None, b"A", "red")]


PICTURE = Image.new("RGB", (4, 4))
ARRAY = np.zeros((4, 4, 3), np.uint8)


@each(
    "cell, source",
    [
        (b"S", b"S"),
        (PICTURE, PICTURE),
        (ARRAY, ARRAY),
        ("a.png", Path("root/a.png")),
        ([b"S"], b"S"),
        ([b"S", "a.png"], [b"S", Path("root/a.png")]),
        ({"bytes": b"S", "path": "a.png"}, b"S"),
        ([{"bytes": None, "path": "a.png"}], Path("root/a.png")),
    ],
)
def test_what_a_cell_may_hold(cell: Any, source: Any) -> None:
    columns = Columns(edited=str.encode, source_root="root")
    [pair] = columns.pairs(["A"], {"source": [cell], "instruction": ["red"]})
    assert pair is not None
    assert pair[0] is source or pair[0] == source


@each(
    "instruction",
    [
        [{"role": "system", "content": "be brief"}, {"role": "user", "content": "red"}],
        [
            {"role": "user", "content": "blue"},
            {"role": "assistant", "content": "?"},
            {"role": "user", "content": "red"},
        ],
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "red"}]}],
        [{"role": "user", "content": "red"}, {"role": "assistant", "content": "the completion"}],
    ],
)
def test_of_a_conversation_the_last_user_message_counts(instruction: Any) -> None:
    columns = Columns(edited=str.encode, instruction="messages", source=None)
    assert columns.pairs(["A"], {"messages": [instruction]}) == [(None, b"A", "red")]


@each(
    "options, columns, message",
    [
        ({}, {}, "edited: not given, and a completion is text. Pass the name of the column"),
        ({"edited": "edit"}, {}, 'edited: no column "edit"; there are instruction, source. Pass edited="COLUMN"'),
        ({"edited": len, "source": "image"}, {}, 'source: no column "image"'),
        ({"edited": len, "instruction": "task"}, {}, 'instruction: no column "task"'),
        ({"edited": len}, {"source": [b"S"]}, "source: 1 cells for 2 completions"),
        ({"edited": len}, {"source": "SS"}, 'source: no column "source"'),
        ({"edited": len}, {"source": [b"S", None]}, r"source[1]: no source image; source=None is for text-to-image"),
        ({"edited": len}, {"source": [[], b"S"]}, "source[0]: no source image"),
        ({"edited": len}, {"source": [{"bytes": None, "path": None}, b"S"]}, "source[0]: no source image"),
        ({"edited": len}, {"source": [[b"S", None], b"S"]}, "source[0]: no source image"),
    ],
)
def test_what_is_missing_is_named(options: Any, columns: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below
        Columns(**options).pairs(TWO, {**COLUMNS, **columns})
    assert message in str(caught.value)


@each("instruction", [None, 3, [], [{"role": "assistant", "content": "x"}], [{"role": "user"}]])
def test_an_instruction_that_is_no_text(instruction: Any) -> None:
    with pytest.raises(TypeError, match=r"instruction\[0\]: \w+; expected text, or a conversation"):
        Columns(edited=str.encode).pairs(["A"], {"source": [b"S"], "instruction": [instruction]})


@each("options", [{"edited": 3}, {"source": 3}, {"instruction": None}, {"source_root": 3}])
def test_wrong_types(options: Any) -> None:
    with pytest.raises(TypeError, match=next(iter(options))):
        Columns(**options)
