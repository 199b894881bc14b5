"""Strict JSON: no repeated keys, no NaN or infinity, no lone surrogates."""

from __future__ import annotations

import json
from typing import Any, NoReturn


class RepeatedKey(ValueError):
    """An object has a key twice, and readers disagree about which value counts."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the key '{key[:64]}' is there twice")
        self.key = key


def loads(document: str | bytes | bytearray) -> Any:
    """Parse a JSON document, UTF-8 with or without a byte order mark.

    Raises ValueError with a message for people, which quotes at most a key or a number, for anything that is not
    JSON, for numbers that no float holds (NaN, Infinity, 1e999), for lone surrogates (half of a character, which no
    UTF-8 file can hold) and for nesting that is too deep; RepeatedKey, which is one, for equal keys in one object.
    """
    if not isinstance(document, str):
        try:
            document = document.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"not UTF-8 (byte {error.start})") from None
    document = document.removeprefix("\ufeff")
    try:
        value = json.loads(
            document, object_pairs_hook=_object, parse_float=_finite, parse_int=_integer, parse_constant=_no_number
        )
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""  # a line of a JSONL file has another number
        raise ValueError(f"not JSON: {error.msg} ({line}column {error.colno})") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not document.isascii() or "\\u" in document:  # else there can be no surrogate
        _require_text(value)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                _require_text(key)  # it is shown
                raise RepeatedKey(key)
            seen.add(key)
    return value


def _finite(text: str) -> float:
    number = float(text)
    if number - number != 0:
        raise ValueError(f"the number {text[:32]} is too large")
    return number


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:  # Python reads no more than some thousand digits
        raise ValueError(f"the number {text[:32]}… is too large") from None


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _require_text(value: Any) -> None:
    waiting = [("a text", value)]  # what a message calls it: the key that it belongs to
    while waiting:
        name, item = waiting.pop()
        if isinstance(item, dict):
            waiting += [("a key", key) for key in item]
            waiting += [(key[:40], below) for key, below in item.items()]
        elif isinstance(item, list):
            waiting += [(name, below) for below in item]
        elif isinstance(item, str) and not item.isascii():
            try:
                item.encode()
            except UnicodeEncodeError:
                shown = name if name.isascii() and name.isprintable() else ascii(name)
                raise ValueError(f"{shown} has a lone surrogate in it, which is no character") from None
