"""Bodies that are nearly requests, at a whole server: each is answered, as the contract says, and never with a 500."""

import httpx
import pytest
from hypothesis import given

from fuzz import corpus
from fuzz.effort import effort
from fuzz.requests import WHOLE, Posted, edits_of, posts
from jrm_client.protocol import ErrorResponse, ScoreResponse
from jrm_service.settings import Settings
from support import servers
from support.servers import error_of


@pytest.fixture(scope="module")
def server():
    settings = Settings(backend="fake", max_body_bytes=4_000_000, max_candidates=64)
    with servers.serving(settings) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


def answer(server: httpx.Client, posted: Posted) -> httpx.Response:
    """The reply, which is as the contract says: 504 where a change made ``timeout_ms`` tiny, else 200 or 4xx."""
    reply = server.post("/v1/score", content=posted.body, headers={"content-type": posted.content_type})
    assert reply.headers["content-type"] == "application/json"
    if reply.status_code == 200:
        groups = ScoreResponse.model_validate_json(reply.content).groups
    else:
        status, code = error_of(reply)
        assert 400 <= status < 500 or (status, code) == (504, "deadline_exceeded"), reply.text
        groups = ErrorResponse.model_validate_json(reply.content).groups
    if groups is not None:
        _in_order(groups)
        expected = edits_of(posted.body) if posted.content_type.startswith(b"application/json") else None
        assert expected in (None, [len(group.scores) for group in groups])
    return reply


def _in_order(groups) -> None:
    """Every candidate has exactly one outcome, at its place."""
    assert [group.index for group in groups] == [*range(len(groups))]
    for group in groups:
        assert [score.index for score in group.scores] == [*range(len(group.scores))]


@effort(400)
@given(posted=posts)
def test_every_body_is_answered(server, posted):
    answer(server, posted)


@pytest.mark.parametrize("posted", WHOLE, ids=["pair", "groups", "form", "request part"])
def test_the_server_still_scores_afterwards(server, posted):
    reply = answer(server, posted)
    assert reply.status_code == 200
    assert all(score["status"] == "ok" for group in reply.json()["groups"] for score in group["scores"])


@pytest.mark.parametrize("path", corpus.REQUESTS, ids=corpus.name)
def test_the_corpus_is_answered(server, path):
    reply = answer(server, Posted.read(path))
    if path.parent.name != "accepted":
        assert reply.json()["error"]["code"] == path.parent.name
