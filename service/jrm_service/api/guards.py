"""What stands before a handler: request ids, the last resort for exceptions, and a body that is read within limits."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jrm_service.errors import PayloadTooLarge, RequestTimeout
from jrm_service.metrics import Metrics

from .errors import error_reply

logger = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class RequestContext:
    """Outermost ASGI layer: ``x-request-id`` on every reply, request metrics, and 500 without a traceback."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102 - ASGI
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}"
        started = time.perf_counter()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except asyncio.CancelledError:
            # Only a shutdown that has run out of patience cancels a request: say so rather than drop the line.
            if status == 0:
                await error_reply("draining", "the server is shutting down")(scope, receive, send_with_id)
        except Exception:
            logger.exception("request %s failed", request_id)
            if status == 0:
                await error_reply("internal", "internal error")(scope, receive, send_with_id)
        finally:
            # The route's template, not the path: a scanner must not be able to create label values.
            route = getattr(scope.get("route"), "path", "unmatched")
            self._metrics.observe_http(scope["method"], route, status, time.perf_counter() - started)


async def read_body(request: Request, *, max_bytes: int, idle_timeout_s: float) -> bytes:
    """The whole body, refused as soon as it is too large or stops arriving.

    Raises PayloadTooLarge (by content-length before the first byte is read, or while it streams in), RequestTimeout
    after ``idle_timeout_s`` without a byte, and starlette's ClientDisconnect when the caller has gone.
    """
    too_large = PayloadTooLarge(f"the body is over {max_bytes} bytes")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise too_large
    body = bytearray()
    while True:
        try:
            async with asyncio.timeout(idle_timeout_s):
                message = await request.receive()
        except TimeoutError:
            raise RequestTimeout(f"no byte of the body for {idle_timeout_s:g} s") from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        if len(body) > max_bytes:
            raise too_large
        if not message.get("more_body", False):
            return bytes(body)


async def disconnected(request: Request) -> None:
    """Return when the caller hangs up. Only after the body was read: nothing else arrives from then on."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
