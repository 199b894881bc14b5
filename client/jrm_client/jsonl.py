"""The reader of JSONL files that all commands share."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from . import strict_json

MAX_LINE_BYTES = 16 * 2**20
"""A longer line is refused: the file is not JSONL, or has lost its line breaks."""

_MOST_QUOTED = 120


@dataclass(frozen=True, slots=True)
class Line:
    """One line that is not blank: ``number`` counts from 1, as editors do; ``offset`` is its place in the file.

    ``text`` includes the line break and no byte order mark. For a line over ``MAX_LINE_BYTES`` it is the beginning.
    """

    number: int
    offset: int
    text: bytes


def lines(file: BinaryIO) -> Iterator[Line]:
    """Yield the lines that are not blank. A line ends in LF or CRLF; the last one may end with the file."""
    number = offset = 0
    while text := file.readline(MAX_LINE_BYTES + 1):  # no seeking: it may be a pipe
        number += 1
        start, length = offset, len(text)
        offset += length
        while length > MAX_LINE_BYTES and not text.endswith(b"\n"):
            rest = file.readline(MAX_LINE_BYTES)
            offset += len(rest)
            if not rest or rest.endswith(b"\n"):
                break
        if number == 1 and text.startswith(codecs.BOM_UTF8):
            start, text = len(codecs.BOM_UTF8), text.removeprefix(codecs.BOM_UTF8)
        if text.strip():
            yield Line(number, start, text)


def parse(text: bytes) -> dict[str, Any]:
    """Return the object of one line. Raises ValueError with the reason, for a reader who knows file and line.

    What is refused: see ``strict_json.loads``.
    """
    if len(text) > MAX_LINE_BYTES and not text.endswith(b"\n"):
        raise ValueError(f"longer than {MAX_LINE_BYTES >> 20} MiB")
    value = strict_json.loads(text.rstrip())
    if not isinstance(value, dict):
        raise ValueError(f"not a JSON object but {_KINDS[type(value)]}")
    return value


_KINDS = {list: "an array", str: "a string", int: "a number", float: "a number", bool: "a boolean", type(None): "null"}


def quoted(text: str) -> str:
    """Return text of a file as messages show it: short, in one line, without control characters."""
    short = text if len(text) <= _MOST_QUOTED else text[:_MOST_QUOTED] + "…"
    return short if short.isprintable() else ascii(short)
