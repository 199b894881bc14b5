"""What the queue learns from the head of a request: its size, and the caller's own id, never one that we made up."""

import asyncio
import base64

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from jrm_service.api import errors
from jrm_service.api.guards import BodyLimits, BodyReader, RequestContext
from jrm_service.api.limits import LocalQuota
from jrm_service.api.score import score_router
from jrm_service.errors import Overloaded
from jrm_service.metrics import Metrics
from support.pictures import encode, photo

IMAGE = base64.b64encode(encode(photo(8, 8))).decode()
BODY = {"source": IMAGE, "edited": IMAGE, "instruction": "x"}


class Queue:
    """Has room for 5 candidates, as far as the head of a request goes, and for none afterwards."""

    def __init__(self) -> None:
        self.batcher = self
        self.asked: list[tuple[str, int]] = []

    def check_room(self, candidates, tenant, request_id):
        self.asked.append((request_id, candidates))
        if candidates > 5:
            raise Overloaded("full", retry_after=7.0)

    async def score(self, groups, *, timeout_s, tenant, request_id):
        self.asked.append((request_id, len(groups[0].edits)))
        raise Overloaded("full", retry_after=8.0)


def ask(queue: Queue, headers: dict[str, str]) -> httpx.Response:
    app = FastAPI()
    bodies = BodyReader(BodyLimits(max_bytes=10**6, max_bytes_of_all=10**6, idle_timeout_s=60, total_timeout_s=60))
    app.include_router(score_router(lambda: queue, bodies, LocalQuota(), max_candidates=10))
    errors.install(app)
    context = RequestContext(app, Metrics(CollectorRegistry()), routes=["/v1/score"], quiet=[])

    async def post() -> httpx.Response:
        transport = httpx.ASGITransport(context)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.post("/v1/score", json=BODY, headers=headers)

    return asyncio.run(post())


@pytest.mark.parametrize(
    ("headers", "known_as"),
    [({"x-request-id": "mine"}, "mine"), ({}, ""), ({"x-request-id": "not an id"}, ""), ({"x-request-id": ""}, "")],
)
def test_the_queue_knows_a_request_by_the_callers_own_id(headers, known_as):
    queue = Queue()
    reply = ask(queue, headers)
    assert (reply.status_code, reply.headers["retry-after"]) == (429, "8")
    assert queue.asked == [(known_as, 1), (known_as, 1)]


def test_a_request_that_cannot_fit_is_refused_before_its_body_is_read():
    queue = Queue()
    reply = ask(queue, {"x-jrm-candidates": "6"})
    assert (reply.status_code, reply.headers["retry-after"]) == (429, "7")
    assert queue.asked == [("", 6)]


@pytest.mark.parametrize(("said", "means"), [("3", 3), ("0", 1), ("-3", 1), ("many", 1), ("9" * 30, 1), ("3.5", 1)])
def test_a_size_that_is_none_is_ignored(said, means):
    queue = Queue()
    ask(queue, {"x-jrm-candidates": said})
    assert queue.asked[0] == ("", means)
