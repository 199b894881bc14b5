"""What a hostile request costs in memory: the peak of a server process, as the kernel counts it."""

import base64
import contextlib
import functools
import io
import re
import select
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from jrm_service.api.keys import Key, digest
from support.pictures import encode, photo

MB = 10**6
SECRET = "jrm_alice-secret"
LIMITS = {"max-body-bytes": 8 * MB, "max-image-pixels": 4 * MB, "max-decoded-bytes": 32 * MB, "preprocess-threads": 2}


@dataclass
class Growth:
    bytes: int = 0


@dataclass(frozen=True)
class Served:
    url: str
    pid: int

    @contextlib.contextmanager
    def growth(self) -> Iterator[Growth]:
        """How much higher the memory of the process rose during the block than it stood before."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")  # the peak begins anew at what is resident now
        growth, before = Growth(), self.peak()
        yield growth
        growth.bytes = self.peak() - before

    def peak(self) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("memory")
    (folder / "keys").write_text(Key("alice", digest(SECRET.encode())).line())
    jrm = Path(sys.executable).parent / "jrm"
    flags = [word for name, value in LIMITS.items() for word in (f"--{name}", str(value))]
    command = [jrm, "serve", "--backend", "fake", "--port", "0", "--api-keys-file", folder / "keys", *flags]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        try:
            line = next(line for line in process.stdout if line.startswith("ready: "))
            served = Served(re.search(r"http://[\d.]+:\d+", line)[0], process.pid)
            assert score(served, [encode(photo())]).status_code == 200  # what is loaded on first use is not growth
            yield served
        finally:
            process.kill()


def score(server: Served, edits: list[bytes]) -> httpx.Response:
    source, *images = (base64.b64encode(data).decode() for data in [encode(photo(seed=1)), *edits])
    request = {"groups": [{"source": source, "instruction": "make it blue", "edits": images}]}
    headers = {"authorization": f"Bearer {SECRET}"}
    return httpx.post(f"{server.url}/v1/score", json=request, headers=headers, timeout=120)


# --- 2 GB ---

HEAD = "POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
WITH_KEY = f"{HEAD}Authorization: Bearer {SECRET}\r\n"
CHUNKED = "Transfer-Encoding: chunked\r\n\r\n"
PIECE = b"A" * MB
UPLOADS = {
    "declared": (f"{WITH_KEY}Content-Length: {2000 * MB}\r\n\r\n", PIECE, 413),
    "declared as little": (f"{WITH_KEY}Content-Length: 1000\r\n\r\n", PIECE, 400),
    "chunked": (WITH_KEY + CHUNKED, b"%x\r\n%b\r\n" % (MB, PIECE), 413),
    "one endless chunk": (WITH_KEY + CHUNKED + "7fffffff\r\n", PIECE, 413),
    "without a key": (HEAD + CHUNKED, b"%x\r\n%b\r\n" % (MB, PIECE), 401),
    "an endless head": (f"{HEAD}x: ", PIECE, 400),
}


@pytest.mark.parametrize("kind", UPLOADS)
def test_two_gigabytes_that_somebody_sends(server, kind):
    head, piece, status = UPLOADS[kind]
    host, port = server.url.removeprefix("http://").split(":")
    reply = b""
    with server.growth() as growth, socket.create_connection((host, int(port)), timeout=60) as connection:
        with contextlib.suppress(ConnectionError):  # the server has heard enough
            connection.sendall(head.encode())
            for _ in range(2000):
                connection.sendall(piece)
                if select.select([connection], [], [], 0)[0]:
                    reply += connection.recv(65536)
        with contextlib.suppress(ConnectionError):
            reply += connection.recv(65536)
    assert reply.startswith(b"HTTP/1.1 %d " % status)
    assert growth.bytes < 32 * MB
    assert httpx.get(f"{server.url}/health/ready").status_code == 200


# --- images that become larger than they are ---


def squares() -> list[bytes]:
    """30 files of a few kB, each of which decodes to 11 MB."""
    return [encode(Image.fromarray(np.full((1900, 1900, 3), number, np.uint8))) for number in range(30)]


@functools.cache
def zeros(megabytes: int) -> bytes:
    squeeze = zlib.compressobj(9)
    return b"".join(squeeze.compress(bytes(MB)) for _ in range(megabytes)) + squeeze.flush()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(*chunks: bytes) -> bytes:
    """A PNG of 64 x 64 with these chunks after its header."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(64 * (1 + 3 * 64))))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + pixels + chunk(b"IEND", b"")


def webp_canvas() -> bytes:
    """A WebP whose header was changed to promise 16,383 x 16,383 pixels."""
    buffer = io.BytesIO()
    photo().save(buffer, "WEBP", lossless=True)
    data = bytearray(buffer.getvalue())
    at = data.index(b"VP8L") + 9
    data[at : at + 4] = struct.pack("<I", 16382 | 16382 << 14)
    return bytes(data)


BOMBS: dict[str, Callable[[], list[bytes]]] = {
    "many large squares": squares,
    "compressed text": lambda: [png(chunk(b"zTXt", b"Comment\0\0" + zeros(300)))],
    "compressed colour profile": lambda: [png(chunk(b"iCCP", b"profile\0\0" + zeros(300)))],
    "more pixels than the header says": lambda: [png(chunk(b"IDAT", zeros(300)))],
    "a canvas of a quarter of a gigapixel": lambda: [webp_canvas()],
}


@pytest.mark.parametrize("kind", BOMBS)
def test_images_that_become_larger_than_they_are(server, kind):
    edits = BOMBS[kind]()
    assert sum(map(len, edits)) < MB
    with server.growth() as growth:
        reply = score(server, edits)
    assert reply.status_code in (200, 422), reply.text
    assert growth.bytes < 100 * MB
