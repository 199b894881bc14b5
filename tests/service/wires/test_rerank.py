"""Edits ranked for their source and instruction, in vLLM's words."""

import httpx

from support import wire_bodies
from support.cases import each
from support.pictures import encode, photo
from support.servers import error_of

SOURCE, *EDITS = (encode(photo(40, 40, seed=n)) for n in range(5))
PAIRS = [wire_bodies.Pair(SOURCE, edited, "make it blue") for edited in EDITS]


def rerank(url: str, route: str = "/v1/rerank", **changes) -> httpx.Response:
    return httpx.post(f"{url}{route}", json=wire_bodies.rerank(PAIRS) | changes, timeout=60)


@each("route", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_the_best_comes_first(route, fake_server):
    reply = rerank(fake_server, route).json()
    rewards = wire_bodies.rewards_of_score(fake_server, PAIRS)
    expected = sorted(enumerate(rewards), key=lambda pair: -pair[1])
    assert [(result["index"], result["relevance_score"]) for result in reply["results"]] == expected
    assert reply["id"].startswith("rerank-")
    assert reply["model"] == "jrm-fake"
    assert reply["usage"]["total_tokens"] > 0


def test_the_first_few_and_the_documents(fake_server):
    results = rerank(fake_server, top_n=2, return_documents=True).json()["results"]
    assert len(results) == 2
    for result in results:
        (part,) = result["document"]["multi_modal"]
        assert part["image_url"]["url"].endswith(wire_bodies.b64(EDITS[result["index"]]))
    assert len(rerank(fake_server, top_n=0).json()["results"]) == 4
    assert "multi_modal" in rerank(fake_server).json()["results"][0]["document"]


TEXT = {"type": "text", "text": "make it blue"}


def part(url: str) -> dict:
    return {"type": "image_url", "image_url": {"url": url}}


def test_one_document_needs_no_list(fake_server):
    alone = wire_bodies.rerank(PAIRS[:1])["documents"][0]
    assert len(rerank(fake_server, documents=alone).json()["results"]) == 1


def test_each_image_of_one_object_is_a_document(fake_server):
    together = {
        "content": [part for document in wire_bodies.rerank(PAIRS)["documents"] for part in document["content"]]
    }
    listed, at_once = (rerank(fake_server, **changes).json()["results"] for changes in ({}, {"documents": together}))
    assert at_once == listed


@each(
    ("documents", "message"),
    [
        (
            {"content": [{"type": "image_url", "image_url": 1}]},
            "documents.0.content.0.image_url: must be a JSON object",
        ),
        ([{"content": [{"type": "image_url"}]}], "documents.0.content.0: the field 'image_url' is missing"),
        ([{"content": [{"type": "text"}]}], "documents.0.content.0: the field 'text' is missing"),
        ([{"content": [{"type": "x" * 999}]}], "documents.0.content.0.type: Input should be 'text' or 'image_url'"),
        ("x" * 999, "documents: Input should be a valid list"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_messages_name_the_field_and_quote_nothing(documents, message, fake_server):
    error = rerank(fake_server, documents=documents).json()["error"]
    assert error["message"] == message
    assert error["param"] == message.split(":")[0]


@each(
    ("changes", "verdict"),
    [
        ({"model": "gpt"}, (404, "not_found")),
        ({"query": "make it blue"}, (400, "invalid_request")),
        ({"query": {"content": [TEXT]}}, (400, "invalid_request")),
        ({"query": {"content": [part("http://example.com/a.png"), TEXT]}}, (400, "invalid_request")),
        ({"query": {"content": [part("file:///etc/passwd"), TEXT]}}, (400, "invalid_request")),
        ({"documents": []}, (400, "invalid_request")),
        ({"documents": ["a text"]}, (400, "invalid_request")),
        ({"documents": [{"content": [TEXT]}]}, (400, "invalid_request")),
        ({"documents": [{"content": [part("data:image/png;base64,AAAA")]}]}, (422, "invalid_image")),
        ({"top_n": -1}, (400, "invalid_request")),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_wrong_is_told_as_our_own_errors_are(changes, verdict, fake_server):
    assert error_of(rerank(fake_server, **changes)) == verdict
