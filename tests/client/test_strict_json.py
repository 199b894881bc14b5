"""JSON that means one thing, or a reason."""

import json

import pytest

from jrm_client import strict_json

GOOD = {
    "an object": b'{"a": [1, 2.5, -3, null, true, "x"], "b": {"a": {}}}',
    "equal keys in different objects": b'{"a": {"a": 1}, "b": [{"a": 1}, {"a": 2}]}',
    "a byte order mark": b'\xef\xbb\xbf{"a": 1}',
    "text beyond ASCII": '{"ä": "\U0001f600"}'.encode(),
    "a surrogate pair": b'{"a": "\\ud83d\\ude00"}',
    "an escaped backslash": b'"\\\\ud800"',
    "a large number": b"1e308",
    "a number like zero": b"1e-999",
}


def test_what_is_read():
    for name, document in GOOD.items():
        expected = json.loads(document.decode("utf-8-sig"))
        for form in (document, bytearray(document), document.decode()):
            assert strict_json.loads(form) == expected, name


BAD = {
    "nothing": (b"", "not JSON"),
    "half": (b'{"a": ', "not JSON"),
    "more than one": (b"{} {}", "not JSON"),
    "not UTF-8": (b'"\xff"', "not UTF-8 \\(byte 1\\)"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
    "NaN": (b"[NaN]", "NaN is not a JSON number"),
    "infinity": (b'{"a": -Infinity}', "-Infinity is not a JSON number"),
    "beyond floats": (b"[1e999]", "the number 1e999 is too large"),
    "beyond negative floats": (b"[-1e999]", "the number -1e999 is too large"),
    "a very long integer": (b"9" * 5000, "the number 9{32}… is too large"),
    "a lone surrogate": (b'["\\ud800"]', "lone surrogate"),
    "a lone surrogate in a key": (b'{"\\uDC00": 1}', "lone surrogate"),
    "a lone surrogate in a key that is there twice": (b'{"\\uDC00": 1, "\\uDC00": 2}', "lone surrogate"),
    "a lone surrogate of a file name": ('"\udcff"', "lone surrogate"),
    "deep lists": (b"[" * 200_000, "nested too deeply"),
    "deep objects": (b'{"a":' * 200_000, "nested too deeply"),
    "equal keys": (b'{"a": 1, "b": 2, "a": 1}', "the key 'a' is there twice"),
    "equal keys deep inside": (b'[{"x": {"y": [{"\xc3\xa4": 1, "\\u00e4": 2}]}}]', "the key 'ä' is there twice"),
    "a long key": (b'{"%b": 1, "%b": 1}' % (b"k" * 999, b"k" * 999), "the key 'k{64}' is there twice"),
}


def test_what_is_refused():
    for name, (document, reason) in BAD.items():
        with pytest.raises(ValueError, match=reason) as error:
            strict_json.loads(document)
        assert len(str(error.value)) < 120, name


def test_the_key_is_told():
    with pytest.raises(strict_json.RepeatedKey) as error:
        strict_json.loads('{"a": 1, "a": 1}')
    assert error.value.key == "a"
