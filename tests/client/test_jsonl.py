"""Lines with their numbers and places, whatever an editor made of the file."""

import io

import pytest

from jrm_client import jsonl


def read(data: bytes) -> list[tuple[int, int, bytes]]:
    return [(line.number, line.offset, line.text) for line in jsonl.lines(io.BytesIO(data))]


def test_lines_are_numbered_as_editors_do() -> None:
    assert read(b'{"a": 1}\r\n\n  \t\n{"b": 2}') == [(1, 0, b'{"a": 1}\r\n'), (4, 15, b'{"b": 2}')]
    assert read(b"") == read(b"\n\n") == read(b"\xef\xbb\xbf\n") == []


def test_a_byte_order_mark_is_no_part_of_the_first_row() -> None:
    assert read(b"\xef\xbb\xbf1\n2\n") == [(1, 3, b"1\n"), (2, 5, b"2\n")]
    with pytest.raises(ValueError, match="not JSON"):  # elsewhere it is text
        jsonl.parse(b"{}\xef\xbb\xbf\n")


def test_only_a_line_feed_ends_a_line() -> None:
    """Python would also split at these, which JSON has within strings."""
    data = '{"a": "x\u2028y\u0085z"}\n'.encode()
    [line] = jsonl.lines(io.BytesIO(data))
    assert jsonl.parse(line.text) == {"a": "x\u2028y\u0085z"}


def test_an_endless_line_is_refused_and_the_next_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 10)
    for length in (10, 11, 20, 21, 22, 35):
        first, second = read(b"x" * length + b"\n{}\n")
        assert (first[0], second) == (1, (2, length + 1, b"{}\n")), length
    with pytest.raises(ValueError, match="longer than"):
        jsonl.parse(b"x" * 11)


def test_a_row_is_an_object() -> None:
    assert jsonl.parse(b'{"a": 1}\r\n') == {"a": 1}
    for text, kind in {b"[1]": "an array", b'"a"': "a string", b"1": "a number", b"null": "null"}.items():
        with pytest.raises(ValueError, match=f"not a JSON object but {kind}"):
            jsonl.parse(text)
