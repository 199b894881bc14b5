"""Calls an ASGI application with a request that arrived over a Ray handle instead of a connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from starlette.types import ASGIApp, Message

Headers = list[tuple[bytes, bytes]]
Head = tuple[int, Headers]
"""The status of a reply and its headers."""

_running: set[asyncio.Task[None]] = set()  # an event loop keeps only weak references to its tasks


async def call(
    app: ASGIApp, method: str, target: str, headers: Headers, body: bytes
) -> AsyncGenerator[Head | bytes, None]:
    """Yield the reply: first its head, then its body piece by piece, as ``app`` sends them.

    If the iterator is closed early, ``app`` sees a broken connection. Raises what ``app`` raises.

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
    disconnected = asyncio.Event()
    unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if unread:
            return unread.pop()
        await disconnected.wait()
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
        disconnected.set()


async def call_buffered(
    app: ASGIApp, method: str, target: str, headers: Headers, body: bytes
) -> tuple[int, Headers, bytes]:
    """Return the reply as (status, headers, body). Arguments are those of ``call``."""
    status, reply_headers, reply_body = 0, list[tuple[bytes, bytes]](), b""
    async for piece in call(app, method, target, headers, body):
        if isinstance(piece, bytes):
            reply_body += piece
        else:
            status, reply_headers = piece
    return status, reply_headers, reply_body
