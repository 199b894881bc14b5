"""What stands before a handler: request ids, the last resort for exceptions, and a body that is read within limits."""

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

from .errors import error_reply
from .methods import strip_origin
from .record import RequestObserver, RequestRecord

logger = logging.getLogger(__name__)

T = TypeVar("T")

_PIECE_BYTES = 65_536
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class RequestContext:
    """Outermost ASGI layer: ``x-request-id`` on every reply, metrics and a log line, and 500 without a traceback.

    Args:
        app: everything else.
        metrics: where requests are counted.
        routes: the paths of the API; any other path is ``unmatched``, so that a scanner creates no label values.
        quiet: routes whose log lines are at DEBUG: what machines call all day.
        observer: is told of each request on another route.
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
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}"
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
            # Only a shutdown that has run out of patience cancels a request: say so rather than drop the line.
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
        """The path of the API that was asked for, with its parameters unnamed (``/mode/{mode}``)."""
        if scope["path"] in self._routes:
            return str(scope["path"])
        template = getattr(scope.get("route"), "path", None)
        return template if template in self._routes else "unmatched"


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """Of one body in bytes, and how long it may take to arrive."""

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
        """The whole body, once its turn in line has come; it has room until the block ends.

        Raises BodyTooLarge by content-length before the first byte is read, or while it streams in; RequestTimeout when
        it stops arriving or takes too long; DeadlineExceeded when its turn does not come in time, by the event loop's
        clock; starlette's ClientDisconnect when the caller has gone.
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
                raise RequestTimeout("the body does not arrive in time") from None
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            yield message.get("body", b"")
            if not message.get("more_body", False):
                return


def _append(pieces: list[bytes | bytearray], chunk: bytes) -> None:
    """A small chunk becomes part of the last piece: as an object of its own it takes many times its bytes."""
    if len(chunk) >= _PIECE_BYTES:
        pieces.append(chunk)
    elif pieces and len(pieces[-1]) < _PIECE_BYTES:
        pieces[-1] += chunk
    else:
        pieces.append(bytearray(chunk))


def _joined(pieces: list[bytes | bytearray]) -> bytearray:
    """In a thread: to copy megabytes takes the event loop longer than all else that it does for them."""
    body = bytearray().join(pieces)
    pieces.clear()
    return body


def patience_ms(headers: Headers, default: int = DEFAULT_TIMEOUT_MS) -> int:
    """How long the request may wait for its turn: what its head says, for nobody knows its ``timeout_ms`` yet."""
    said = headers.get(TIMEOUT_HEADER, "")
    known = said.isascii() and said.isdigit() and len(said) < 10
    return min(max(1, int(said)), MAX_TIMEOUT_MS) if known else default


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, which is cancelled when the caller hangs up. Raises ClientDisconnect then."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return await task
    finally:
        for one in (task, watch):
            one.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await one


async def _disconnected(request: Request) -> None:
    """Return when the caller hangs up. Only after the body was read: nothing else arrives from then on."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
