"""The routes ``GET /`` and ``/page/…``, which serve the page to browsers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import Headers
from starlette.types import Scope

from jrm_service.api.errors import error_reply

from .files import INDEX, StaticFile

_FOLDER = "/page/"


def install(
    app: FastAPI, files: Mapping[str, StaticFile], *, documentation: Callable[[], Awaitable[Response]], greets: bool
) -> None:
    """Serve the page to browsers. Install it last: ``POST /`` may belong to a wire.

    Args:
        app: gets the routes.
        files: those of the page; empty if it is off.
        documentation: what a browser is shown at ``/`` in that case.
        greets: whether ``GET /`` also answers programs, such as the clients of other reward servers.
    """

    @app.api_route("/", methods=["GET", "POST"], include_in_schema=False)  # POST: where no wire has taken it
    async def root(request: Request) -> Response:
        if request.method == "GET" and _wants_html(request.headers):
            reply = files[INDEX].reply(request.headers) if files else await documentation()
        elif request.method == "GET" and greets:
            reply = JSONResponse({"status": "ok", "service": "jrm"})
        else:
            reply = error_reply("not_found", "Not Found")
        reply.headers["vary"] = "accept"
        return reply

    if not files:
        return

    @app.get(f"{_FOLDER}{{name:path}}", include_in_schema=False)
    async def file(request: Request, name: str) -> Response:
        static = files.get(name)
        return error_reply("not_found", "Not Found") if static is None else static.reply(request.headers)


def open_paths(files: Mapping[str, StaticFile]) -> set[str]:
    """The paths that need no key: these files hold nobody's data."""
    return {f"{_FOLDER}{name}" for name in files}


def is_page(scope: Scope) -> bool:
    """Whether a browser asks for the page itself, which needs no key either, unlike ``POST /``, which may score."""
    return scope["method"] in ("GET", "HEAD") and scope["path"] == "/" and _wants_html(Headers(scope=scope))


def _wants_html(headers: Headers) -> bool:
    accepted = (kind.replace(" ", "").lower().split(";") for kind in headers.get("accept", "").split(","))
    return any(kind == "text/html" and not {"q=0", "q=0.0"}.intersection(options) for kind, *options in accepted)
