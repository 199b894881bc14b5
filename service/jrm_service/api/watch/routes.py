"""The routes ``GET /v1/watch``, and that of the pictures that its events name."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from fastapi import APIRouter, Request
from starlette.responses import Response

from jrm_client.protocol import ErrorResponse
from jrm_service.api.access_log import hang_up_of, record_of
from jrm_service.api.errors import error_reply
from jrm_service.api.keys import Scopes
from jrm_service.api.methods import asked_method
from jrm_service.scoring.types import ServedModel

from .recorder import Recorder
from .stream import EventStream, events, resumed

SCOPE = "watch"
_PICTURE_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; sandbox",
    "x-content-type-options": "nosniff",
}


def watch_router(
    recorder: Recorder | None,
    model: Callable[[], ServedModel],
    *,
    scores: bool,
    scopes: Scopes,
) -> APIRouter:
    """Return the routes. Without a ``recorder`` they answer 404, and are left out of the schema.

    ``model`` returns the served model, or raises NotReady; ``scores``: whether this process scores at all. A key needs
    the scope ``watch``.
    """
    router = APIRouter(tags=["watch"], include_in_schema=recorder is not None)
    run = secrets.token_hex(4)
    off = "start the server with --keep-recent 200" if scores else "this server does not score"

    @router.get(
        "/v1/watch",
        response_class=Response,
        responses={
            200: {"content": {"text/event-stream": {}}},
            **{status: {"model": ErrorResponse} for status in (401, 403, 429, 503)},
        },
    )
    async def watch(request: Request) -> Response:
        """The most recently scored groups, and new ones as they are scored, as server-sent events."""
        if recorder is None:
            return error_reply("not_found", f"no groups are kept: {off}")
        scopes.require(record_of(request.scope).key, SCOPE)
        served = model()
        if asked_method(request.scope) == "HEAD":
            return Response(media_type="text/event-stream")
        now = (await recorder.window_event()).document
        seen = now["first_hour"]["dimensions"] if now["first_hour"] else {}
        hello = {
            "keep_recent": recorder.store.max_groups,
            "keep_bytes": recorder.store.max_bytes + recorder.max_waiting_bytes,
            "dimensions": list(served.description.get("dimensions") or seen),
            "model": served.name,
            "fingerprint": served.fingerprint,
            **{name: now[name] for name in ("first_hour", "now", "drift")},
        }
        after = resumed(request.headers.get("last-event-id", ""), run, recorder.store.newest)
        record_of(request.scope).endless = True
        held = ExitStack()
        changed = held.enter_context(recorder.reader(hang_up_of(request.scope)))
        goes_on = partial(scopes.allow, record_of(request.scope).key, SCOPE)
        return EventStream(events(recorder, changed, hello, after=after, run=run, goes_on=goes_on), held)

    @router.get(
        "/v1/watch/pictures/{id}",
        response_class=Response,
        responses={
            200: {"content": {"image/png": {}, "image/jpeg": {}, "image/webp": {}}},
            **{status: {"model": ErrorResponse} for status in (401, 403, 404)},
        },
    )
    async def picture(request: Request, id: str) -> Response:
        """A picture of a group, while the group is kept."""
        if recorder is None:
            return error_reply("not_found", f"no pictures are kept: {off}")
        scopes.require(record_of(request.scope).key, SCOPE)
        stored = recorder.store.picture(id)
        if stored is None:
            return error_reply("not_found", "no such picture is kept")
        return Response(stored.content, media_type=stored.media_type, headers=_PICTURE_HEADERS)

    return router
