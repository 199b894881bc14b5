"""Image files for the tests: what pillow can write, and PNG files put together by hand for what it cannot."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from jrm_service.images.decode import read_header

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def photo(width: int = 37, height: int = 23) -> Image.Image:
    """An RGB image without symmetry: smooth colours under a little noise, no sample at 0 or 255."""
    y, x = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(width * 1000 + height).integers(-20, 21, (height, width, 3))
    smooth = np.stack([40 + 170 * x / width, 60 + 150 * y / height, 128 + 60 * np.sin(x / 5 + y / 9)], axis=-1)
    return Image.fromarray(np.clip(smooth + noise, 1, 254).astype(np.uint8))


def encode(image: Image.Image, format: str, **options: object) -> bytes:
    """The file that pillow writes."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    """One PNG chunk."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    width: int,
    height: int,
    scanlines: bytes,
    *,
    depth: int = 8,
    colour_type: int = 2,
    interlace: int = 0,
    before: Sequence[bytes] = (),
    after: Sequence[bytes] = (),
) -> bytes:
    """A PNG file of these scanlines, each with its filter byte; ``before`` and ``after`` are chunks around IDAT."""
    ihdr = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, interlace)
    idat = chunk(b"IDAT", zlib.compress(scanlines))
    return b"".join([SIGNATURE, chunk(b"IHDR", ihdr), *before, idat, *after, chunk(b"IEND", b"")])


def insert_chunks(file: bytes, *chunks: bytes) -> bytes:
    """The PNG file with more chunks right after IHDR."""
    return file[:33] + b"".join(chunks) + file[33:]


def insert_segment(file: bytes, marker: int, body: bytes) -> bytes:
    """The JPEG file with one more segment right after SOI."""
    return file[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body + file[2:]


def exif(orientation: int, order: str = ">", kind: int = 3) -> bytes:
    """A TIFF block that states an orientation (and a resolution unit, so that it is not alone)."""
    value = struct.pack(order + {1: "B3x", 3: "H2x", 4: "I"}[kind], orientation)
    entries = struct.pack(order + "HHI", 0x0112, kind, 1) + value + struct.pack(order + "HHIH2x", 0x0128, 3, 1, 2)
    head = {">": b"MM", "<": b"II"}[order] + struct.pack(order + "HI", 42, 8)
    return head + struct.pack(order + "H", 2) + entries + bytes(4)


def xmp(orientation: int) -> bytes:
    """A packet that states an orientation."""
    return b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><tiff:Orientation>%d</tiff:Orientation></x:xmpmeta>' % orientation


def pixels(image: Image.Image) -> np.ndarray:
    """uint8 [H, W, 3] of an RGB image."""
    assert image.mode == "RGB"
    return np.asarray(image)


def size(file: bytes) -> tuple[int, int]:
    """Width and height by the header."""
    header = read_header(file)
    return header.width, header.height
