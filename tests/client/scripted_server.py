"""A real HTTP/1.1 server on a real socket that follows a script and remembers what it was sent."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

DIMENSIONS = {"visual_quality": -1.0, "instruction_following": 1.0}


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def parts(self) -> list[tuple[str, bytes]]:
        boundary = self.headers["content-type"].partition("boundary=")[2].encode()
        found = []
        for chunk in self.body.split(b"--" + boundary)[1:-1]:
            head, _, data = chunk.removeprefix(b"\r\n").partition(b"\r\n\r\n")
            found.append((head.split(b'name="')[1].split(b'"')[0].decode(), data.removesuffix(b"\r\n")))
        return found

    @property
    def images(self) -> dict[str, bytes]:
        return {f"part:{name}": data for name, data in self.parts if name != "request"}

    @property
    def json(self) -> dict[str, Any]:
        [text] = [data for name, data in self.parts if name == "request"]
        return json.loads(text)


@dataclass
class Reply:
    status: int = 200
    json: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None


@dataclass
class Stream:
    """A chunked 200, piece by piece, that ends as it should, breaks off, or stays open until the client leaves."""

    pieces: Sequence[bytes]
    end: Literal["whole", "broken", "open"] = "whole"
    headers: dict[str, str] = field(default_factory=dict)
    after: Callable[[], None] = lambda: None  # called when the pieces are sent


class Drop:
    """Close the connection without a reply."""


class Truncate:
    """Begin a reply and close the connection."""


class Hang:
    """Read the request and never answer."""


class Trickle:
    """Send a header, then a byte of the body over and over, and never finish."""


Step = Reply | Stream | Drop | Truncate | Hang | Trickle | Callable[[Request], Reply]


def reward_of(image: bytes) -> float:
    return zlib.crc32(image) / 2**32


def score_entry(index: int, image: bytes) -> dict[str, Any]:
    reward = reward_of(image)
    dimensions = {name: {"mean": reward + shift, "std": 0.5} for name, shift in DIMENSIONS.items()}
    return {
        "index": index,
        "status": "ok",
        "reward": reward,
        "reward_std": 0.25,
        "cached": False,
        "dimensions": dimensions,
    }


def error_entry(
    index: int, code: str = "invalid_image", message: str | None = None, group: int = 0, field: str | None = None
) -> dict[str, Any]:
    field = field or f"edits[{index}]"
    error = {
        "code": code,
        "message": f"{field}: not an image" if message is None else message,
        "param": f"groups[{group}].{field}",
    }
    return {"index": index, "status": "error", "error": error}


def scores(groups: Sequence[Sequence[dict[str, Any]]], fingerprint: str = "f00d") -> Reply:
    body = {
        "id": "score-1",
        "object": "score.list",
        "created": 1,
        "model": "scripted",
        "fingerprint": fingerprint,
        "groups": [{"index": index, "scores": list(entries)} for index, entries in enumerate(groups)],
        "usage": {"candidates": 1, "images": 1, "tokens": 1, "tokens_computed": 1},
        "timings_ms": {"preprocess": 0.0, "queue": 0.0, "inference": 0.0, "total": 0.0},
    }
    return Reply(json=body)


def score_all(request: Request) -> Reply:
    """What a healthy server does: a reward that depends on the edited image's bytes alone; bad ones begin with BAD."""
    asked, images = request.json["groups"], request.images
    groups = [
        [
            error_entry(k) if images[name].startswith(b"BAD") else score_entry(k, images[name])
            for k, name in enumerate(group["edits"])
        ]
        for group in asked
    ]
    if not any(entry["status"] == "ok" for group in groups for entry in group):
        return refusal(422, "invalid_image", groups=[{"index": i, "scores": g} for i, g in enumerate(groups)])
    return scores(groups)


def refusal(status: int, code: str, *, headers: dict[str, str] | None = None, **more: Any) -> Reply:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    error = {"message": f"the server says {code}", "type": kind, "param": None, "code": code}
    return Reply(status, {"error": error, **more}, headers or {})


class ScriptedServer:
    """Answers the n-th request with the n-th step of ``script``, and then goes on with ``then``."""

    def __init__(
        self,
        *script: Step,
        then: Step = score_all,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.script = list(script)
        self.then = then
        self.requests: list[Request] = []
        self.connections = 0
        self.disconnected = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, host, port, ssl=tls))
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://{host}:{self.port}"
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._shutdown(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def _shutdown(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.connections += 1
        try:
            while await self._answer(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self.disconnected.set()
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, path, _ = head[0].split(" ")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        request = Request(method, path, headers, body)
        self.requests.append(request)
        step = self.script.pop(0) if self.script else self.then
        if isinstance(step, Drop):
            return False
        if isinstance(step, Hang):
            await asyncio.Event().wait()
        if isinstance(step, Trickle | Truncate):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
            while isinstance(step, Trickle):
                writer.write(b" ")
                await asyncio.sleep(0.01)
            await writer.drain()
            writer.close()
            await writer.wait_closed()
            return False
        if isinstance(step, Stream):
            return await self._stream(reader, writer, step)
        self._write(writer, step if isinstance(step, Reply) else step(request))
        await writer.drain()
        return True

    @staticmethod
    async def _stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, step: Stream) -> bool:
        headers = {"content-type": "text/event-stream; charset=utf-8", "x-request-id": "req-7", **step.headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        writer.write(f"HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n{lines}\r\n".encode())
        for piece in step.pieces:
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
        step.after()
        if step.end == "whole":
            writer.write(b"0\r\n\r\n")
            await writer.drain()
            return True
        if step.end == "open":
            return bool(await reader.read())  # until the client closes the connection
        writer.close()
        await writer.wait_closed()
        return False

    @staticmethod
    def _write(writer: asyncio.StreamWriter, reply: Reply) -> None:
        body = json.dumps(reply.json).encode() if reply.body is None else reply.body
        headers = {"content-length": str(len(body)), "x-request-id": "req-7", **reply.headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        writer.write(f"HTTP/1.1 {reply.status} X\r\n{lines}\r\n".encode() + body)
