"""JSON texts that are nearly requests: trees changed anywhere, with what JSON can say and a Python dict cannot."""

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hypothesis import strategies as st

from fuzz import corpus

Draw = Callable[[st.SearchStrategy], object]

_RED, _BLUE = (
    base64.b64encode((corpus.CORPUS / "images/accepted" / file).read_bytes()).decode()
    for file in ("rgb.png", "rgb.ppm")
)


@dataclass
class Object:
    """An object as its text has it: members in order, names as often as they occur."""

    members: list[tuple[str, object]]


@dataclass(frozen=True)
class Text:
    """A value in its own spelling, valid or not."""

    text: str


GROUP = Object([("source", _RED), ("instruction", "make it blue"), ("edits", [_BLUE, _RED, _BLUE])])
DOCUMENTS = [
    Object([("source", _RED), ("edited", _BLUE), ("instruction", "make it blue"), ("timeout_ms", 30_000)]),
    Object([("groups", [GROUP, GROUP]), ("timeout_ms", 30_000)]),
]
QUESTION = Object(
    [
        *(("source", _RED), ("edited", _BLUE), ("instruction", "make it blue")),
        *(("dimensions", ["visual_quality"]), ("max_tokens", 64), ("stream", False), ("timeout_ms", 30_000)),
    ]
)

_NUMBERS = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e400",
    "-0",
    "30000.0",
    "1.5",
    "01",
    "9" * 18,
    "9" * 5000,
    "1e5",
    "-1e-999",
]
_SPELLINGS = [
    r'"\ud800"',
    r'"\udc00\ud800"',
    r'"\u0000"',
    '"\n"',
    "'x'",
    "",
    "{",
    "undefined",
    '"\\x41"',
    "/**/1",
    '"\x7f"',
]
_NESTED = ["[" * 3000, '{"a":' * 3000, "[" * 150 + "]" * 150, '{"groups":' * 100 + "1" + "}" * 100]
STRANGE = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([*map(Text, [*_NUMBERS, *_SPELLINGS, *_NESTED])]),
    st.integers(-(2**70), 2**70),
    st.text(max_size=20),
    st.sampled_from(
        ["part:a", "part:", "data:image/png;base64,", "data:;base64,AA==", "file:///etc/passwd", "AA==", "\ufeff"]
    ),
    st.sampled_from([[], Object([]), [[]], [None], Object([("", "")])]),
    st.sampled_from([_RED, _RED[:-5], f"data:image/png;base64,{_RED}", "x" * 10_000]),
)
_NAMES = [
    "source",
    "edited",
    "edits",
    "instruction",
    "groups",
    "timeout_ms",
    "Source",
    "sourc\u0435",
    "",
    "__class__",
    "extra" * 50,
]


@st.composite
def documents(draw: Draw, trees: Sequence[Object] = DOCUMENTS) -> str:
    """The text of one of ``trees`` with up to three changes."""
    tree = draw(st.sampled_from(trees))
    for _ in range(draw(st.integers(0, 3))):
        tree = _changed(draw, tree)
    return spelled(tree)


def _changed(draw: Draw, tree: object) -> object:
    """Go down some way, then replace, wrap, drop, repeat or rename."""
    deeper = draw(st.sampled_from([True, True, True, False]))
    if isinstance(tree, Object) and tree.members and deeper:
        return Object(_changed_members(draw, tree.members))
    if isinstance(tree, list) and tree and deeper:
        at = draw(st.integers(0, len(tree) - 1))
        into = draw(st.sampled_from(["value", "drop", "repeat"]))
        new = {
            "value": lambda: [_changed(draw, tree[at])],
            "drop": list,
            "repeat": lambda: [tree[at]] * draw(st.integers(2, 70)),
        }
        return [*tree[:at], *new[into](), *tree[at + 1 :]]
    return [tree] if draw(st.sampled_from([True, *[False] * 5])) else draw(STRANGE)


def _changed_members(draw: Draw, members: list[tuple[str, object]]) -> list[tuple[str, object]]:
    at = draw(st.integers(0, len(members) - 1))
    name, value = members[at]
    match draw(st.sampled_from(["value", "value", "value", "drop", "repeat", "rename", "add"])):
        case "value":
            new = [(name, _changed(draw, value))]
        case "drop":
            new = []
        case "repeat":
            new = [(name, value), (name, draw(STRANGE))][:: draw(st.sampled_from([1, -1]))]
        case "rename":
            new = [(draw(st.sampled_from(_NAMES)), value)]
        case _:
            new = [(name, value), (draw(st.sampled_from(_NAMES)), draw(STRANGE))]
    return [*members[:at], *new, *members[at + 1 :]]


def spelled(tree: object) -> str:
    """The JSON text of a tree."""
    if isinstance(tree, Text):
        return tree.text
    if isinstance(tree, Object):
        return "{" + ",".join(f"{json.dumps(name)}:{spelled(value)}" for name, value in tree.members) + "}"
    if isinstance(tree, list):
        return "[" + ",".join(map(spelled, tree)) + "]"
    return json.dumps(tree)


@st.composite
def encoded(draw: Draw, text: st.SearchStrategy) -> bytes:
    """A text as bytes, mostly as UTF-8."""
    encoding = draw(st.sampled_from(["utf-8"] * 5 + ["utf-16", "utf-8-sig", "utf-32", "latin-1", "utf-7"]))
    return draw(text).encode(encoding, "surrogatepass" if encoding.startswith("utf-8") else "replace")
