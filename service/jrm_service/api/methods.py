"""HTTP variants that clients and health checks use: HEAD, OPTIONS on a health route, a target with a host."""

from __future__ import annotations

import re
from collections.abc import Collection

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_ASKED = "jrm.method"
_ORIGIN = re.compile(r"https?://[^/]*", re.IGNORECASE)


def strip_origin(scope: Scope) -> None:
    """Remove scheme and host from a target like ``http://host/path``, which means ``/path``."""
    origin = _ORIGIN.match(scope["path"])
    if origin is not None:
        scope["path"] = scope["path"][origin.end() :] or "/"


def asked_method(scope: Scope) -> str:
    """The method as the caller sent it; a stream must not be started for a HEAD."""
    return str(scope.get(_ASKED, scope["method"]))


class Methods:
    """ASGI layer that answers HEAD like GET, without the body, and on ``probes`` OPTIONS like GET, with the body.

    Container runtimes and load balancers check health with HEAD, and HAProxy by default with OPTIONS: the status must
    be that of GET, so that a server which is not ready is sent no requests.
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

        # A copy: uvicorn must still see HEAD, so that it sends no body.
        asked = {**scope, "method": "GET", _ASKED: method} if method in also else scope
        try:
            await self._app(asked, receive, send_allowed)
        finally:
            if "route" in asked:  # for the layers above, which have the original scope
                scope["route"] = asked["route"]
