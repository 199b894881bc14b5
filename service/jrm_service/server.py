"""uvicorn, but a first signal drains before the listeners close."""

from __future__ import annotations

import asyncio
import math
import socket
import time
from functools import partial
from types import FrameType

import uvicorn

from .app import Application
from .connection import Connection

KEEP_ALIVE_S = 75
"""Seconds that an idle connection is kept: longer than the pause between two steps of most trainers. A caller that
drops its own sooner, as the SDK does, never sends a request into a connection that is being closed."""


def listen(host: str, port: int, *, reuse_port: bool = False) -> socket.socket:
    """A socket that listens; port 0 picks a free one. A name of several addresses means its first one of IPv4, if any.

    With ``reuse_port`` it is bound and does not listen yet (``Server.open``), and other processes of the same user may
    have the same port: the kernel deals connections out to all that listen.

    Raises OSError when that cannot be, with a message for people.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, ValueError) as error:  # ValueError: no host is called so
        raise OSError(f"the host {host} has no address here: {getattr(error, 'strerror', None) or error}") from None
    family, kind, protocol, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    if reuse_port and not hasattr(socket, "SO_REUSEPORT"):
        raise OSError("reuse_port: sockets of this platform cannot; give each server a port, and callers all of them")
    listener = socket.socket(family, kind, protocol)
    try:
        if reuse_port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        if not reuse_port:
            listener.listen()  # now: of two who have bound the same port, the second is refused here
    except OSError as error:
        listener.close()
        raise OSError(f"cannot listen on port {port} of {host}: {error.strerror}") from None
    return listener


class Server(uvicorn.Server):
    """Serves one application.

    On the first SIGTERM or SIGINT the application drains: new work reads 503 ``draining``, readiness fails, and what
    was admitted is finished; then the server stops. All of that takes ``grace_s`` seconds at most, and a moment for the
    goodbyes: requests that are not done by then read 503 ``draining`` too. A second signal stops the server at once.
    With ``reuse_port`` other servers have the port too, so this one listens while it can answer: from ``open`` on,
    until the first signal.
    """

    def __init__(self, app: Application, *, host: str, port: int, grace_s: float, reuse_port: bool = False) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                # What this product does not speak is off: an upgrade that is offered gets an ordinary answer, behind
                # the same key, limits and timeouts as any other request.
                ws="none",
                # h11 bounds the head of a request and the trailers of a body, and stops reading from a caller who does
                # not read; uvicorn's other parser does neither, and loses the body of an offered upgrade to HTTP/2.
                http=Connection,
                h11_max_incomplete_event_size=64 * 1024,
                interface="asgi3",
                lifespan="on",  # "auto" would serve on after a start-up that failed
                workers=1,  # not what WEB_CONCURRENCY says: a second process would load the model again
                proxy_headers=False,  # nothing here depends on the address or the scheme of a caller
                log_config=None,  # its records go where ours go, in our format
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=math.ceil(grace_s),
            )
        )
        self._app = app
        self._grace_s = grace_s
        self._reuse_port = reuse_port
        self._shared: list[socket.socket] = []
        self._opening: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asked = False
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen."""
        self._loop = asyncio.get_running_loop()
        if self._reuse_port:
            self._shared, sockets = sockets or [], []
        await super().startup(sockets=sockets)

    def open(self) -> None:
        """There is a model: take part in a port that is shared. Without ``reuse_port`` the server listens already."""
        if self._shared and not self._asked:
            for listener in self._shared:
                listener.listen()  # connections wait from now on
            self._opening = asyncio.ensure_future(self._accept())

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        connection = partial(
            Connection, config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        for listener in self._shared:
            self.servers.append(await loop.create_server(connection, sock=listener, backlog=self.config.backlog))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, and let what is being answered end. Drained or not: some replies have no end of their own."""
        self._app.end_streams()
        await super().shutdown(sockets=sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by the signal, or by whoever wants the server to end."""
        if self._loop is None or self._asked:
            self.should_exit = self.force_exit = True
        else:
            self._asked = True
            self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        self._draining = asyncio.ensure_future(self._drain_and_exit())

    async def _drain_and_exit(self) -> None:
        started = time.monotonic()
        if self._reuse_port:
            for server in self.servers:
                server.close()  # whoever connects now reaches a server that goes on
        await self._app.drain()
        # Whoever still uploads, or reads an answer, has what is left of the same grace, not another one.
        left = self._grace_s - (time.monotonic() - started)
        self.config.timeout_graceful_shutdown = max(1, math.ceil(left))
        self.should_exit = True
