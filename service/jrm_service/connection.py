"""One HTTP/1.1 connection: uvicorn's, without protocol upgrades, and with a timeout for idle connections."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from .api.access_log import HANG_UP


class Connection(H11Protocol):
    """Answers the requests of one connection.

    A connection on which no request is being answered is closed when nothing has arrived for ``timeout_keep_alive``
    seconds: between two requests, and also before the first one, in the middle of a request's head, and in a body that
    continues after its reply. An endless reply can drop its connection, with everything its reader has not read: see
    ``api.access_log.HANG_UP``.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start waiting for the first request."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, HANG_UP: transport.abort}
        self._close_when_idle()

    def data_received(self, data: bytes) -> None:
        """Read data, and keep waiting if the head of a request is not complete."""
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._close_when_idle()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP, or close the connection if a reply has begun already."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.close()

    def _close_when_idle(self) -> None:
        if self.timeout_keep_alive_task is None and not self.transport.is_closing():
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _should_upgrade(self) -> bool:
        """Ignore offered upgrades, which Java's client makes: uvicorn would log two lines for each."""
        return False
