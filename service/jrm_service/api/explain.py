"""``POST /v1/explain``: the critique of one edit, as one reply or as server-sent events."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from jrm_client.protocol import FINGERPRINT_HEADER, STREAM_END, ErrorResponse, ExplainResponse
from jrm_service.errors import BodyTooLarge, CandidateError, DeadlineExceeded, RequestTimeout
from jrm_service.explain.service import Delta, Done, ExplainService
from jrm_service.scoring.types import ServedModel

from .access_log import DISCONNECTED, record_of
from .errors import UnreadBodyReply, domain_error_reply
from .guards import BodyReader, patience_ms, unless_disconnected
from .openapi import EXPLAIN_REQUEST_BODY
from .parse import parse_explain_request

_CLIENT_CLOSED = 499  # only metrics and logs show it
_Events = AsyncGenerator[Delta | Done]
_STREAM_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}  # proxies must not collect events


def explain_router(service: Callable[[], ExplainService], bodies: BodyReader, *, enabled: bool) -> APIRouter:
    """Return the routes of ``/v1/explain``.

    ``service`` returns the running service, or raises ExplainDisabled, NotReady or Draining. ``enabled``: whether this
    process serves critiques, so that the schema shows the routes.
    """
    router = APIRouter(tags=["explain"])

    async def explain(request: Request) -> Response:
        """The language head's critique of one edit, by dimension. Asking for it changes no score."""
        record = record_of(request.scope)
        explainer = service()
        try:
            patience_s = patience_ms(request.headers) / 1e3
            deadline = asyncio.get_running_loop().time() + patience_s
            async with bodies.read(request, tenant=record.key.name if record.key else "", deadline=deadline) as body:
                record.body_bytes = len(body)
                question, stream = await run_in_threadpool(
                    parse_explain_request,
                    request.headers.get("content-type", ""),
                    body,
                    content_encoding=request.headers.get("content-encoding", "identity"),
                )
                body.clear()
            events = explainer.explain(question)
            if stream:
                return await _streamed(request, explainer.model, events)
            return await _whole(request, explainer.model, events)
        except ClientDisconnect:
            record.error = DISCONNECTED
            return Response(status_code=_CLIENT_CLOSED)
        except (BodyTooLarge, DeadlineExceeded, RequestTimeout) as error:
            return UnreadBodyReply(domain_error_reply(error))
        except CandidateError as error:  # of an image or the instruction: there is only one candidate
            return domain_error_reply(error)

    for path in ("/v1/explain", "/explain"):
        router.add_api_route(
            path,
            explain,
            methods=["POST"],
            operation_id=f"explain{path.replace('/', '_')}",
            include_in_schema=enabled,
            response_model=ExplainResponse,
            responses={
                status: {"model": ErrorResponse} for status in (400, 401, 408, 413, 415, 422, 429, 500, 503, 504)
            },
            openapi_extra={"requestBody": EXPLAIN_REQUEST_BODY},
        )
    return router


async def _whole(request: Request, model: ServedModel, events: _Events) -> Response:
    """All explanations in one reply. Raises ClientDisconnect, and what the service raises before the first event."""
    done = await unless_disconnected(request, _finished(events))
    names = [*model.description["dimensions"]]  # in this order, whichever was finished first
    failures = [event.error for event in done.values() if event.error is not None]
    if len(failures) == len(done):
        return domain_error_reply(failures[0])
    response = ExplainResponse(
        id=_id(),
        model=model.name,
        fingerprint=model.fingerprint,
        explanations={name: done[name].explanation for name in names if name in done},
    )
    return JSONResponse(response.model_dump(mode="json", exclude_none=True))


async def _finished(events: _Events) -> dict[str, Done]:
    async with aclosing(events):
        return {event.dimension: event async for event in events if isinstance(event, Done)}


async def _streamed(request: Request, model: ServedModel, events: _Events) -> Response:
    """Events as they happen. What the service raises before the first one is raised here, and sets the status."""
    record = record_of(request.scope)
    try:
        first = await unless_disconnected(request, anext(events))
    except BaseException:
        await events.aclose()
        raise

    async def lines() -> AsyncIterator[str]:
        record.error = DISCONNECTED  # unless the stream reaches its end
        async with aclosing(events):
            yield _event(first)
            async for event in events:
                yield _event(event)
        yield f"data: {STREAM_END}\n\n"
        record.error = None

    headers = {**_STREAM_HEADERS, "x-jrm-id": _id(), "x-jrm-model": model.name, FINGERPRINT_HEADER: model.fingerprint}
    return StreamingResponse(lines(), media_type="text/event-stream", headers=headers)


def _event(event: Delta | Done) -> str:
    document: dict[str, Any] = {"dimension": event.dimension}
    if isinstance(event, Delta):
        document["delta"] = event.text
    else:
        document["explanation"] = event.explanation.model_dump(mode="json", exclude_none=True)
    return f"data: {json.dumps(document, ensure_ascii=False)}\n\n"


def _id() -> str:
    return f"explain-{uuid.uuid4().hex}"
