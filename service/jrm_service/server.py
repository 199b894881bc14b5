"""The HTTP server: uvicorn, which drains on the first signal before its listeners close."""

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
"""Seconds that an idle connection is kept: longer than the pause between two steps of most trainers. A client that
drops idle connections sooner, as the SDK does, never sends a request over a connection that is being closed."""


def listen(host: str, port: int, *, reuse_port: bool = False) -> socket.socket:
    """Return a listening socket; port 0 picks a free one. Of a name's addresses the first is used, IPv4 preferred.

    With ``reuse_port`` it is bound but does not listen yet (``Server.open``), and other processes of the same user may
    share the port: the kernel distributes connections over all that listen.

    Raises OSError with a message for people.
    """
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, ValueError) as error:  # ValueError: not a valid host name
        raise OSError(f"the host {host} has no address here: {getattr(error, 'strerror', None) or error}") from None
    family, kind, protocol, _, address = min(addresses, key=lambda entry: entry[0] != socket.AF_INET)
    if reuse_port and not hasattr(socket, "SO_REUSEPORT"):
        raise OSError("reuse_port: sockets of this platform cannot; give each server a port, and callers all of them")
    listener = socket.socket(family, kind, protocol)
    try:
        if reuse_port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        if not reuse_port:
            listener.listen()  # at once: of two processes that bound the same port, the second is refused here
    except OSError as error:
        listener.close()
        raise OSError(f"cannot listen on port {port} of {host}: {error.strerror}") from None
    return listener


class Server(uvicorn.Server):
    """Serves one application.

    On the first SIGTERM or SIGINT the application drains: new requests get 503 ``draining``, readiness fails, and
    admitted work is finished; then the server stops. That takes little more than ``grace_s`` seconds at most: requests
    that are not done by then get 503 ``draining`` too. A second signal stops the server at once. With ``reuse_port``
    other servers share the port, so this one listens only while it can answer: from ``open`` until the first signal.
    """

    def __init__(self, app: Application, *, host: str, port: int, grace_s: float, reuse_port: bool = False) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                # No protocol upgrades: a request that offers one gets an ordinary reply, with the same key, limits and
                # timeouts as any other request.
                ws="none",
                # h11 bounds the head of a request and the trailers of a body, and stops reading from a caller who does
                # not read; uvicorn's other parser does neither, and loses the body of an offered upgrade to HTTP/2.
                http=Connection,
                h11_max_incomplete_event_size=64 * 1024,
                interface="asgi3",
                lifespan="on",  # "auto" would continue after a failed start-up
                workers=1,  # overrides WEB_CONCURRENCY: a second process would load the model again
                proxy_headers=False,  # nothing here depends on the address or the scheme of a caller
                log_config=None,  # its records go to our log, in our format
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
        """Listen on a shared port, now that there is a model. Without ``reuse_port`` the server listens already."""
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
        """Stop listening, and let running replies finish. Endless ones are ended, whether drained or not."""
        self._app.end_streams()
        await super().shutdown(sockets=sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain on the first call, which a signal makes, and exit on the second."""
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
                server.close()  # new connections then reach another server on the port
        await self._app.drain()
        # Uploads and downloads in progress get the rest of the same grace period, not another one.
        left = self._grace_s - (time.monotonic() - started)
        self.config.timeout_graceful_shutdown = max(1, math.ceil(left))
        self.should_exit = True
