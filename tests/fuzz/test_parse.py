"""Bodies that are nearly requests, at the parser: groups or one of its three errors, and no byte of a file changed."""

import pytest
from hypothesis import given

from fuzz import corpus
from fuzz.documents import QUESTION, documents, encoded, spelled
from fuzz.effort import effort
from fuzz.forms import whole_forms
from fuzz.requests import WHOLE, Posted, edits_of, posts
from fuzz.verdicts import peak_growth, short_message
from jrm_service.api.parse import Parsed, parse_explain_request
from jrm_service.errors import InvalidImage, InvalidRequest, PayloadTooLarge, UnsupportedMediaType
from jrm_service.explain.service import Question
from support.parsing import parse_score_request

MAX_CANDIDATES = 64
_ROOM = 24 * 2**20


def parsed(posted: Posted) -> Parsed | tuple[str, str, str | None]:
    """The request, or the code, message and field of the error. Fails for any other exception."""
    try:
        return parse_score_request(
            posted.content_type.decode("latin-1"),
            bytearray(posted.body),
            content_encoding="identity",
            max_candidates=MAX_CANDIDATES,
        )
    except (InvalidRequest, PayloadTooLarge, UnsupportedMediaType) as error:
        return error.code, short_message(error, 300), error.param


@effort(800)
@given(posts)
def test_a_body_is_a_request_or_a_typed_error(posted):
    request, growth = peak_growth(lambda: parsed(posted))
    assert growth < 40 * len(posted.body) + _ROOM
    assert repr(parsed(posted)) == repr(request)  # an InvalidImage is equal only to itself
    if not isinstance(request, Parsed):
        return
    assert 1 <= request.timeout_ms <= 600_000
    assert 1 <= sum(len(group.edits) for group in request.groups) <= MAX_CANDIDATES
    for group in request.groups:
        assert group.edits
        assert group.instruction.strip()
        for image in (*group.sources, *group.edits):
            assert isinstance(image.data, bytes | InvalidImage)


@effort(400)
@given(posts)
def test_json_means_what_another_parser_reads(posted):
    request = parsed(posted)
    if posted.content_type == b"application/json" and isinstance(request, Parsed):
        assert [len(group.edits) for group in request.groups] == edits_of(posted.body)


@effort(400)
@given(whole_forms())
def test_files_of_a_form_arrive_as_they_were_sent(form):
    content_type, body, files = form
    request = parsed(Posted(content_type, body))
    assert isinstance(request, Parsed), request
    assert [edit.data for edit in request.groups[0].edits] == files
    assert request.groups[0].sources[0].data == b"s"


def question(body: bytes) -> Question | str:
    """What is asked of the language head, or the message of the error. Fails for any other exception."""
    try:
        found, _ = parse_explain_request("application/json", bytearray(body), content_encoding="identity")
    except (InvalidRequest, PayloadTooLarge) as error:
        return short_message(error, 300)
    return found


@effort(300)
@given(encoded(documents([QUESTION])))
def test_a_body_is_a_question_or_a_typed_error(body):
    asked, growth = peak_growth(lambda: question(body))
    assert growth < 40 * len(body) + _ROOM
    assert repr(question(body)) == repr(asked)
    if isinstance(asked, Question):
        assert asked.max_tokens >= 1
        assert 0 < asked.timeout_s <= 600
        assert asked.instruction.strip()


def test_the_question_that_mutations_start_from_is_valid():
    assert isinstance(question(spelled(QUESTION).encode()), Question)


@pytest.mark.parametrize("ask", [question, lambda body: parsed(Posted(b"application/json", body))])
def test_values_are_counted_before_they_are_read(ask):
    """A million small objects in 9 MB are a gigabyte once they have been read."""
    body = b'{"a":[' + b'{"a":1},' * 1_100_000 + b"1]}"
    refusal, growth = peak_growth(lambda: ask(body))
    assert "values in the JSON document" in str(refusal)
    assert growth < 4 * len(body)


@pytest.mark.parametrize("posted", WHOLE, ids=["pair", "groups", "form", "request part"])
def test_what_mutations_start_from_is_valid(posted):
    assert isinstance(parsed(posted), Parsed)


@pytest.mark.parametrize("path", corpus.REQUESTS, ids=corpus.name)
def test_the_corpus_gets_its_verdict(path):
    request = parsed(Posted.read(path))
    assert ("accepted" if isinstance(request, Parsed) else request[0]) == path.parent.name
