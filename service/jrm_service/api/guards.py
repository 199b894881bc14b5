"""What runs before a handler: request ids, the last resort for exceptions, and reading a body within limits."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Collection, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jrm_client.protocol import DEFAULT_TIMEOUT_MS, MAX_TIMEOUT_MS, TIMEOUT_HEADER
from jrm_service.errors import BodyTooLarge, DeadlineExceeded, RequestTimeout
from jrm_service.metrics import Metrics, known_method
from jrm_service.scoring.line import WaitingLine

from .access_log import RequestObserver, RequestRecord
from .errors import error_reply
from .methods import strip_origin

logger = logging.getLogger(__name__)

T = TypeVar("T")

_PIECE_BYTES = 65_536
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class RequestContext:
    """Outermost ASGI layer: ``x-request-id`` on every reply, metrics and a log line, and 500 without a traceback.

    Args:
        app: the rest of the application.
        metrics: counts the requests.
        routes: the paths of the API; any other path is ``unmatched``, so that a scanner creates no label values.
        quiet: routes that are logged at DEBUG, since probes call them all day.
        observer: is called with each request on a route that is not quiet.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        *,
        routes: Collection[str],
        quiet: Collection[str],
        observer: RequestObserver | None = None,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._routes = frozenset(routes)
        self._quiet = frozenset(quiet)
        self._observer = observer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102 - ASGI
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        strip_origin(scope)
        headers = Headers(scope=scope)
        sent_id = headers.get("x-request-id", "")
        request_id = sent_id if _REQUEST_ID.fullmatch(sent_id) else f"req-{uuid.uuid4().hex}"
        record = RequestRecord(request_id)
        record.attach(scope)
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
            # Only a shutdown that is out of time cancels a request: say so rather than close the connection.
            if status == 0:
                await error_reply("draining", "the server is shutting down")(scope, receive, send_with_id)
        except Exception:
            logger.exception("request %s failed", request_id)
            if status == 0:
                await error_reply("internal", "internal error")(scope, receive, send_with_id)
        finally:
            route = self._route(scope)
            method = known_method(scope["method"])
            seconds = time.perf_counter() - record.started
            self._metrics.observe_http(method, route, status, None if record.endless else seconds)
            if record.wire:
                self._metrics.wire_requests.labels(record.wire, record.outcome).inc()
            if record.refused and record.error is not None:
                self._metrics.rejections.labels(record.error).inc()
            level = logging.DEBUG if route in self._quiet else logging.INFO
            record.log(method, route, status, seconds, level=level)
            if self._observer is not None and route not in self._quiet:
                known = None if route == "unmatched" else route
                self._observer.observe(record, headers, method=method, route=known, status=status)

    def _route(self, scope: Scope) -> str:
        """The route's path template (``/mode/{mode}``), or ``unmatched``."""
        if scope["path"] in self._routes:
            return str(scope["path"])
        template = getattr(scope.get("route"), "path", None)
        return template if template in self._routes else "unmatched"


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """The limits of one body: its bytes, and the seconds that it may take to arrive."""

    max_bytes: int
    idle_timeout_s: float
    total_timeout_s: float


class BodyReader:
    """Reads request bodies within limits. Use from one event loop."""

    def __init__(self, limits: BodyLimits, line: WaitingLine) -> None:
        self._limits = limits
        self._line = line

    @asynccontextmanager
    async def read(self, request: Request, *, tenant: str, deadline: float) -> AsyncIterator[bytearray]:
        """Wait in line, then read the whole body; its memory is reserved until the block ends.

        Raises BodyTooLarge by content-length before the first byte is read, or while the body streams in;
        RequestTimeout when it stops arriving or takes too long; DeadlineExceeded when its turn does not come before
        ``deadline``, in the event loop's time; starlette's ClientDisconnect when the caller has gone.
        """
        declared = request.headers.get("content-length", "")
        size = int(declared) if declared.isdigit() else self._limits.max_bytes
        if size > self._limits.max_bytes:
            raise BodyTooLarge(f"the body is over {self._limits.max_bytes} bytes")
        async with AsyncExitStack() as held:
            try:
                async with asyncio.timeout_at(deadline):
                    was_read = await held.enter_async_context(self._line.body(size, tenant))
            except TimeoutError:
                raise DeadlineExceeded("timeout_ms passed before the body was read") from None
            pieces: list[bytes | bytearray] = []
            received = 0
            async for chunk in self._chunks(request):
                received += len(chunk)
                if received > self._limits.max_bytes:
                    raise BodyTooLarge(f"the body is over {self._limits.max_bytes} bytes")
                _append(pieces, chunk)
            body = await run_in_threadpool(_joined, pieces)
            was_read()
            yield body

    async def _chunks(self, request: Request) -> AsyncIterator[bytes]:
        deadline = asyncio.get_running_loop().time() + self._limits.total_timeout_s
        while True:
            patience = min(self._limits.idle_timeout_s, deadline - asyncio.get_running_loop().time())
            try:
                async with asyncio.timeout(patience):
                    message = await request.receive()
            except TimeoutError:
                raise RequestTimeout("the body did not arrive in time") from None
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            yield message.get("body", b"")
            if not message.get("more_body", False):
                return


def _append(pieces: list[bytes | bytearray], chunk: bytes) -> None:
    """Join small chunks into larger pieces: as an object of its own, a small chunk takes many times its bytes."""
    if len(chunk) >= _PIECE_BYTES:
        pieces.append(chunk)
    elif pieces and len(pieces[-1]) < _PIECE_BYTES:
        pieces[-1] += chunk
    else:
        pieces.append(bytearray(chunk))


def _joined(pieces: list[bytes | bytearray]) -> bytearray:
    """Runs in a thread: copying megabytes would block the event loop longer than everything else it does for them."""
    body = bytearray().join(pieces)
    pieces.clear()
    return body


def patience_ms(headers: Headers, default: int = DEFAULT_TIMEOUT_MS) -> int:
    """How long the request may wait in line, from its header: the body's ``timeout_ms`` has not been read yet."""
    value = headers.get(TIMEOUT_HEADER, "")
    valid = value.isascii() and value.isdigit() and len(value) < 10
    return min(max(1, int(value)), MAX_TIMEOUT_MS) if valid else default


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of ``work``. If the caller hangs up, cancel it and raise ClientDisconnect."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return await task
    finally:
        for future in (task, watch):
            future.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await future


async def _disconnected(request: Request) -> None:
    """Return when the caller hangs up. Call it only after the body was read: nothing else arrives from then on."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
