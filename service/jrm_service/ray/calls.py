"""A request that came without a connection, to an ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from starlette.types import ASGIApp, Message

Headers = list[tuple[bytes, bytes]]
Head = tuple[int, Headers]
"""The status of a reply and its headers."""

_running: set[asyncio.Task[None]] = set()  # an event loop keeps no hold of its tasks


async def call(
    app: ASGIApp, method: str, target: str, headers: Headers, body: bytes
) -> AsyncGenerator[Head | bytes, None]:
    """The reply: first its head, then its body piece by piece, as ``app`` sends them.

    To close it early is to ``app`` what a broken connection is. Raises what ``app`` raises.

    Args:
        app: the application.
        method: of the request.
        target: its path and query, quoted as in a request line.
        headers: with names in lower case.
        body: all of it.
    """
    path, _, query = target.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": list(headers),
        "client": None,
        "server": None,
    }
    sent: asyncio.Queue[Message | None] = asyncio.Queue()
    left = asyncio.Event()
    unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if unread:
            return unread.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def run() -> None:
        try:
            await app(scope, receive, sent.put)
        finally:
            sent.put_nowait(None)

    running = asyncio.create_task(run())
    _running.add(running)
    running.add_done_callback(_running.discard)
    try:
        while (message := await sent.get()) is not None:
            if message["type"] == "http.response.start":
                yield message["status"], list(message["headers"])
            elif message.get("body"):
                yield message["body"]
        await running
    finally:
        left.set()


async def whole(app: ASGIApp, method: str, target: str, headers: Headers, body: bytes) -> tuple[int, Headers, bytes]:
    """The reply as (status, headers, body). As ``call``."""
    status, answered, pieces = 0, list[tuple[bytes, bytes]](), b""
    async for piece in call(app, method, target, headers, body):
        if isinstance(piece, bytes):
            pieces += piece
        else:
            status, answered = piece
    return status, answered, pieces
