"""Requests that concern every replica, while Ray sends them to one: metrics, sleep and wake go to all replicas."""

from __future__ import annotations

import string
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from http import HTTPStatus

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from jrm_service.api.admin import PATHS as ADMIN_PATHS
from jrm_service.api.errors import error_reply

from .asgi_calls import Headers

METRICS = "/metrics"

_MAX_BODY_BYTES = 65_536  # as the routes themselves have it
_NAME = f"{string.ascii_letters}{string.digits}_:"  # the characters of metric names


@dataclass(frozen=True, slots=True)
class Reply:
    """The reply of one replica."""

    replica: str
    status: int
    headers: Headers
    body: bytes


AskAll = Callable[[str, str, Headers, bytes], Awaitable[Sequence[Reply | None]]]
"""Sends a request (method, target, headers, body) to every running replica; a replica that died has None."""


class BroadcastMiddleware:
    """ASGI layer that sends requests which concern all replicas to all of them, and handles the others here.

    The first reply that is not a success is the reply. Replies to ``GET /metrics`` are merged into one text, in which
    each sample has the label ``replica``.
    """

    def __init__(self, app: ASGIApp, ask_all: AskAll, *, admin: bool) -> None:
        self._app = app
        self._ask_all = ask_all
        self._paths = {METRICS, *(ADMIN_PATHS if admin else ())}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102 - ASGI
        path = scope.get("path", "")
        if scope["type"] != "http" or path not in self._paths:
            await self._app(scope, receive, send)
            return
        await (await self._answer(Request(scope, receive), path))(scope, receive, send)

    async def _answer(self, request: Request, path: str) -> Response:
        body = b""
        async for piece in request.stream():
            body += piece
            if len(body) > _MAX_BODY_BYTES:
                return error_reply("payload_too_large", f"the body is over {_MAX_BODY_BYTES:,} bytes")
        answers = await self._ask_all(request.method, path, request.headers.raw, body)
        replies = [reply for reply in answers if reply is not None]
        if not replies or (path != METRICS and len(replies) < len(answers)):
            return error_reply("not_ready", "a replica does not answer")
        reply = next((reply for reply in replies if reply.status != HTTPStatus.OK), replies[0])
        if reply.status == HTTPStatus.OK and path == METRICS and request.method == "GET":
            text = merged({reply.replica: reply.body.decode() for reply in replies}.items())
            return Response(text, media_type=CONTENT_TYPE_LATEST)
        response = Response(reply.body, reply.status)
        response.raw_headers = list(reply.headers)
        return response


def merged(texts: Iterable[tuple[str, str]]) -> str:
    """Merge the Prometheus texts of several replicas, given as (replica, text), into one."""
    families: dict[str, list[str]] = {}
    for replica, text in texts:
        family: list[str] = []
        for line in text.splitlines():
            if line.startswith("# HELP "):
                family = families.setdefault(line.split(" ")[2], [])
            if not line.startswith("#"):
                family.append(_labelled(line, replica))
            elif line not in family:
                family.append(line)
    return "".join(f"{line}\n" for family in families.values() for line in family)


def _labelled(sample: str, replica: str) -> str:
    rest = sample.lstrip(_NAME)
    name = sample[: len(sample) - len(rest)]
    return f'{name}{{replica="{replica}",{rest[1:]}' if rest[0] == "{" else f'{name}{{replica="{replica}"}}{rest}'
