"""What clients and health checks may vary in how they ask: HEAD, OPTIONS of a health route, a target with a host."""

from __future__ import annotations

import re
from collections.abc import Collection

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_ASKED = "jrm.method"
_ORIGIN = re.compile(r"https?://[^/]*", re.IGNORECASE)


def strip_origin(scope: Scope) -> None:
    """Take scheme and host off a target like ``http://host/path``, which is as good as ``/path``."""
    origin = _ORIGIN.match(scope["path"])
    if origin is not None:
        scope["path"] = scope["path"][origin.end() :] or "/"


def asked_method(scope: Scope) -> str:
    """The method of a request as its caller sent it, for a reply that would have no end."""
    return str(scope.get(_ASKED, scope["method"]))


class Methods:
    """ASGI layer: HEAD is answered as GET is, without the body; on ``probes`` so is OPTIONS, with the body.

    Container runtimes and load balancers ask for health with HEAD, and HAProxy with OPTIONS unless told otherwise: the
    status must be that of GET, so that a server which is not ready is not sent requests.
    """

    def __init__(self, app: ASGIApp, *, probes: Collection[str]) -> None:
        self._app = app
        self._probes = frozenset(probes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102 - ASGI
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        also = ["HEAD", "OPTIONS"] if scope["path"] in self._probes else ["HEAD"]
        method = scope["method"]

        async def send_allowed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                allowed = re.findall(r"[A-Z]+", headers.get("allow", ""))
                if "GET" in allowed:
                    headers["allow"] = ", ".join(dict.fromkeys([*allowed, *also]))
                elif method == "OPTIONS" and "OPTIONS" in also:
                    headers["allow"] = ", ".join(["GET", *also])
            await send(message)

        # A copy: the server itself must still know that the answer to a HEAD has no body.
        asked = {**scope, "method": "GET", _ASKED: method} if method in also else scope
        try:
            await self._app(asked, receive, send_allowed)
        finally:
            if "route" in asked:  # for the layers above, which know the scope that was copied
                scope["route"] = asked["route"]
