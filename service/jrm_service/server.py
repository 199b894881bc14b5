"""uvicorn, but a first signal drains before the listeners close."""

from __future__ import annotations

import asyncio
import math
import socket
import time
from types import FrameType

import uvicorn

from .app import Application


class Server(uvicorn.Server):
    """Serves one application.

    On the first SIGTERM or SIGINT the application drains: new work reads 503 ``draining``, readiness fails, and what
    was admitted is finished; then the server stops. All of that takes ``grace_s`` seconds at most, and a moment for the
    goodbyes: requests that are not done by then read 503 ``draining`` too. A second signal stops the server at once.
    """

    def __init__(self, app: Application, *, host: str, port: int, grace_s: float) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                # h11 bounds the head of a request and the trailers of a body, and stops reading from a caller who does
                # not read; uvicorn's other parser does neither, and loses the body of an offered upgrade to HTTP/2.
                http="h11",
                h11_max_incomplete_event_size=64 * 1024,
                log_config=None,  # its records go where ours go, in our format
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_keep_alive=75,  # longer than the pause between two steps of most trainers
                timeout_graceful_shutdown=math.ceil(grace_s),
            )
        )
        self._app = app
        self._grace_s = grace_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asked = False
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets=sockets)

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
        await self._app.drain()
        # Whoever still uploads, or reads an answer, has what is left of the same grace, not another one.
        left = self._grace_s - (time.monotonic() - started)
        self.config.timeout_graceful_shutdown = max(1, math.ceil(left))
        self.should_exit = True
