"""uvicorn, but a first signal drains before the listeners close."""

from __future__ import annotations

import asyncio
import math
import socket
from types import FrameType

import uvicorn

from .app import Application


class Server(uvicorn.Server):
    """Serves one application.

    On the first SIGTERM or SIGINT the application drains: new work reads 503 ``draining``, readiness fails, and what
    was admitted is finished; then the server stops. A second signal stops it at once.
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
                timeout_graceful_shutdown=math.ceil(grace_s) + 1,
            )
        )
        self._app = app
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets=sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by the signal, or by whoever wants the server to end."""
        if self._loop is None or self._draining is not None:
            self.should_exit = self.force_exit = True
        else:
            self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        if self._draining is None:
            self._draining = asyncio.ensure_future(self._drain_and_exit())

    async def _drain_and_exit(self) -> None:
        await self._app.drain()
        self.should_exit = True
