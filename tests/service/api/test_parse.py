"""What is refused in JSON wherever it stands, and how much memory a body takes while it is parsed."""

import base64
import json
import os
import tracemalloc

import pytest

from jrm_service.api.parse import parse_explain_request
from jrm_service.errors import InvalidRequest
from support.parsing import parse_score_request

BOUNDARY = "frontier"
MB = 10**6


def form(**parts: bytes) -> bytes:
    head = '--{}\r\ncontent-disposition: form-data; name="{}"\r\n\r\n'
    pieces = [head.format(BOUNDARY, name).encode() + data + b"\r\n" for name, data in parts.items()]
    return b"".join(pieces) + f"--{BOUNDARY}--\r\n".encode()


def score_json(body: bytes):
    return parse_score_request("application/json", bytearray(body), content_encoding="identity", max_candidates=99)


def score_part(body: bytes):
    content_type = f"multipart/form-data; boundary={BOUNDARY}"
    whole = bytearray(form(request=body))
    return parse_score_request(content_type, whole, content_encoding="identity", max_candidates=99)


def explain_json(body: bytes):
    return parse_explain_request("application/json", bytearray(body), content_encoding="identity")


PAIR = b'"source": "AAAA", "edited": "AAAA", "instruction": "make it red"'
GROUP = b'"source": "AAAA", "edits": ["AAAA"], "instruction": "make it red"'
BOTH = [score_json, score_part]
EVERY = [*BOTH, explain_json]

BAD = {
    "a pair's instruction twice": (EVERY, b'{%b, "instruction": "make it blue"}' % PAIR, "instruction"),
    "the same twice": (EVERY, b'{%b, "source": "AAAA"}' % PAIR, "source"),
    "escaped differently": (EVERY, b'{%b, "s\\u006furce": "BBBB"}' % PAIR, "source"),
    "timeout_ms twice": (EVERY, b'{%b, "timeout_ms": 1, "timeout_ms": 60000}' % PAIR, "timeout_ms"),
    "max_tokens twice": ([explain_json], b'{%b, "max_tokens": 1, "max_tokens": 2}' % PAIR, "max_tokens"),
    "groups twice": (BOTH, b'{"groups": [{%b}], "groups": [{%b}]}' % (GROUP, GROUP), "groups"),
    "in a group": (BOTH, b'{"groups": [{%b, "edits": ["BBBB"]}]}' % GROUP, "edits"),
    "in the last group": (BOTH, b'{"groups": [{%b}, {%b, "source": "BBBB"}]}' % (GROUP, GROUP), "source"),
    "in an unknown field": (EVERY, b'{%b, "more": [{"x": {"deep": 1, "deep": 2}}]}' % PAIR, "deep"),
    "a huge timeout": (EVERY, b'{%b, "timeout_ms": 1e999}' % PAIR, None),
    "NaN": (EVERY, b'{%b, "timeout_ms": NaN}' % PAIR, None),
    "a lone surrogate": (EVERY, PAIR.replace(b"red", b"\\ud800").join([b"{", b"}"]), None),
    "a field called by a lone surrogate": (EVERY, b'{%b, "\\udfff": 1}' % PAIR, None),
    "nested deeply": (EVERY, b'{%b, "more": %b}' % (PAIR, b"[" * 100_000 + b"]" * 100_000), None),
}


def test_what_json_leaves_open_is_refused():
    for name, (parsers, body, key) in BAD.items():
        for parse in parsers:
            with pytest.raises(InvalidRequest) as error:
                parse(body)
            assert error.value.param == key, (name, parse.__name__)
            assert key is None or str(error.value) == f"the key '{key}' is there twice", (name, parse.__name__)
            assert str(error.value).isascii(), name


def test_the_documents_without_the_flaw_are_taken():
    assert score_json(b"{%b}" % PAIR).groups[0].instruction == "make it red"
    assert score_part(b'{"groups": [{%b}]}' % GROUP).groups[0].instruction == "make it red"
    assert explain_json(b"{%b}" % PAIR)[0].instruction == "make it red"
    assert score_json(b"\xef\xbb\xbf{%b}" % PAIR).groups[0].instruction == "make it red"


def test_what_is_no_object_is_told_without_our_class_names():
    for body in (b"[]", b'"x"', b"null", b'{"groups": [5]}'):
        with pytest.raises(InvalidRequest, match="must be a JSON object"):
            score_json(body)


# --- sources ---------------------------------------------------------------------------------------------------------


def test_no_source_one_and_several():
    for given, names in (
        (b"", []),
        (b'"source": null,', []),
        (b'"source": "AAAA",', ["source"]),
        (b'"source": ["AAAA"],', ["source"]),
        (b'"source": ["AAAA", "data:image/png;base64,BBBB", "AAAA"],', ["source[0]", "source[1]", "source[2]"]),
    ):
        for parse, body in (
            (score_json, b'{%b "edited": "CCCC", "instruction": "x"}' % given),
            (score_json, b'{"groups": [{%b "edits": ["CCCC"], "instruction": "x"}]}' % given),
            (score_part, b'{"groups": [{%b "edits": ["CCCC"], "instruction": "x"}]}' % given),
        ):
            (group,) = parse(body).groups
            assert [source.name for source in group.sources] == names, body
        question, _ = explain_json(b'{%b "edited": "CCCC", "instruction": "x"}' % given)
        assert [source.name for source in question.sources] == names, given
    assert len({source.key for source in question.sources}) == 2


def test_a_source_of_another_kind_is_named():
    for given, param, message in (
        (b"[]", "source", "at least 1 item"),
        (b"5", "source", "must be an image or a list of images"),
        (b"{}", "source", "must be an image or a list of images"),
        (b'""', "source", "at least 1 character"),
        (b'["AAAA", null]', "source.1", "valid string"),
        (b'[["AAAA"], "AAAA"]', "source.0", "valid string"),
        (b'["AAAA", ""]', "source.1", "at least 1 character"),
        (b"[" + b'"AAAA", ' * 10_000 + b"5]", "source.10000", "valid string"),
    ):
        for parse, body, prefix in (
            (score_json, b'{"source": %b, "edited": "CCCC", "instruction": "x"}', ""),
            (explain_json, b'{"source": %b, "edited": "CCCC", "instruction": "x"}', ""),
            (score_part, b'{"groups": [{"source": %b, "edits": ["CCCC"], "instruction": "x"}]}', "groups.0."),
        ):
            with pytest.raises(InvalidRequest, match=message) as error:
                parse(body % given)
            assert error.value.param == prefix + param, (given, body)


def test_the_parts_of_a_list_are_each_there():
    document = b'{"source": ["part:a", "part:b", "part:a"], "edited": "part:b", "instruction": "x"}'
    whole = form(request=document, a=b"aa", b=b"bb")
    (group,) = parse_score_request(_MULTIPART, whole, content_encoding="identity", max_candidates=9).groups
    assert [(source.name, source.data) for source in group.sources] == [
        ("source[0]", b"aa"),
        ("source[1]", b"bb"),
        ("source[2]", b"aa"),
    ]
    with pytest.raises(InvalidRequest, match="part 'b' is missing"):
        parse_score_request(_MULTIPART, form(request=document, a=b"aa"), content_encoding="identity", max_candidates=9)


def test_the_field_source_of_a_form_repeats_in_order():
    parts = [("source", b"s"), ("edited", b"e"), ("source", b"t"), ("instruction", b"x"), ("source", b"s")]
    body = b"".join(form(**{name: data}).removesuffix(f"--{BOUNDARY}--\r\n".encode()) for name, data in parts)
    whole = body + f"--{BOUNDARY}--\r\n".encode()
    (group,) = parse_score_request(_MULTIPART, whole, content_encoding="identity", max_candidates=9).groups
    assert [(source.name, source.data) for source in group.sources] == [
        ("source[0]", b"s"),
        ("source[1]", b"t"),
        ("source[2]", b"s"),
    ]
    (without,) = parse_score_request(
        _MULTIPART, form(edited=b"e", instruction=b"x"), content_encoding="identity", max_candidates=9
    ).groups
    assert without.sources == []


# --- memory ----------------------------------------------------------------------------------------------------------

FILES = {name: os.urandom(3 * MB) for name in ("source", "a", "b", "c")}
_TEXTS = [base64.b64encode(data).decode() for data in FILES.values()]
_REQUEST = {"groups": [{"source": "part:source", "instruction": "x", "edits": ["part:a", "part:b", "part:c"]}]}
_MULTIPART = f"multipart/form-data; boundary={BOUNDARY}"
BODIES = {
    "JSON": (
        "application/json",
        json.dumps({"groups": [{"source": _TEXTS[0], "instruction": "x", "edits": _TEXTS[1:]}]}).encode(),
    ),
    "one large image": (
        "application/json",
        json.dumps(
            {"source": base64.b64encode(b"".join(FILES.values())).decode(), "edited": "AAAA", "instruction": "x"}
        ).encode(),
    ),
    "a request part": (_MULTIPART, form(request=json.dumps(_REQUEST).encode(), **FILES)),
    "a form": (_MULTIPART, form(source=b"".join(FILES.values()), instruction=b"x", edited=b"x")),
}


@pytest.mark.parametrize("kind", BODIES)
def test_what_was_sent_is_held_twice_at_most(kind):
    content_type, sent = BODIES[kind]

    body = bytearray(sent)
    tracemalloc.start()
    try:
        parsed = parse_score_request(content_type, body, content_encoding="identity", max_candidates=99)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert not body
    # What was emptied was allocated before: at the peak for JSON, the text and its values are there without the body.
    assert peak < (2.05 if kind in ("JSON", "one large image") else 1.05) * len(sent)
    assert parsed.groups[0].sources[0].data.startswith(FILES["source"])


def test_bytes_that_look_like_a_boundary_stay_in_the_file():
    tricky = b"\r\n--frontie\r\n--fronti\r\n-\r\r\n--frontierx\r\n--frontier-x\r\n--" + b"\r\n" * 3
    body = form(source=tricky, instruction=b"x", edited=b"")
    group = parse_score_request(_MULTIPART, body, content_encoding="identity", max_candidates=9).groups[0]
    assert group.sources[0].data == tricky
    assert group.edits[0].data == b""
