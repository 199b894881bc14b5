"""Bodies that are nearly a trainer's, at a whole server: answered as its client understands, never with a 500."""

import json
import pickle

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz import corpus
from fuzz.documents import Object, documents, encoded
from fuzz.effort import effort
from fuzz.mutations import changed_bytes
from jrm_service.settings import Settings
from support import servers, wire_bodies

FILES = [(corpus.CORPUS / "images/accepted" / name).read_bytes() for name in ("rgb.png", "rgb.ppm")]
PAIRS = [wire_bodies.Pair(FILES[0], edited, "make it blue") for edited in FILES]
JSON_ROUTES = {
    "/score": wire_bodies.unirl(PAIRS, request_id="a"),
    "/compute": wire_bodies.flow_factory(PAIRS),
    "/v2/models/jrm/infer": wire_bodies.kserve(PAIRS),
    "/v1/rerank": wire_bodies.rerank(PAIRS) | {"top_n": 1, "return_documents": True},
}
PICKLE_ROUTES = {
    "/mode/logits_non_cot": [wire_bodies.edit_r1(PAIRS)],
    "/": [wire_bodies.deepgen(PAIRS), wire_bodies.editscore(PAIRS)],
}


@pytest.fixture(scope="module")
def server():
    settings = Settings(backend="fake", wires=wire_bodies.ALL, max_body_bytes=4_000_000, max_candidates=64)
    with servers.serving(settings) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


def tree(value: object) -> object:
    if isinstance(value, dict):
        return Object([(name, tree(part)) for name, part in value.items()])
    return [tree(part) for part in value] if isinstance(value, list) else value


json_posts = st.one_of(
    *(st.tuples(st.just(route), encoded(documents([tree(body)]))) for route, body in JSON_ROUTES.items())
)


@effort(600)
@given(post=json_posts)
def test_every_json_body_is_answered(server, post):
    route, body = post
    reply = server.post(route, content=body, headers={"content-type": "application/json"})
    answer = json.loads(reply.content)
    assert reply.status_code == 200 or 400 <= reply.status_code < 500, reply.text
    if route == "/compute":
        assert reply.status_code == 200
        assert set(answer) in ({"rewards"}, {"error"})
    if route == "/score" and "results" in answer:
        assert [bool(result) for result in answer["results"]] == [not error for error in answer["errors"]]


@st.composite
def pickle_posts(draw):
    route = draw(st.sampled_from([*PICKLE_ROUTES]))
    body = pickle.dumps(draw(st.sampled_from(PICKLE_ROUTES[route])), draw(st.integers(2, 5)))
    for _ in range(draw(st.integers(0, 3))):
        body = changed_bytes(draw, body)
    return route, body


@effort(600)
@given(post=pickle_posts())
def test_every_pickle_is_answered(server, post):
    route, body = post
    reply = server.post(route, content=body)
    assert reply.status_code == 200 or 400 <= reply.status_code < 500, reply.content
    answer = pickle.loads(reply.content)
    assert ("error" in answer) == (reply.status_code != 200)


@pytest.mark.parametrize("route", [*JSON_ROUTES, *PICKLE_ROUTES])
def test_what_mutations_start_from_is_valid(server, route):
    for value in PICKLE_ROUTES.get(route, [JSON_ROUTES.get(route)]):
        data = pickle.dumps(value) if route in PICKLE_ROUTES else json.dumps(value)
        assert server.post(route, content=data, headers={"content-type": "application/json"}).status_code == 200
