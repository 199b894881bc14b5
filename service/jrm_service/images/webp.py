"""WebP: the canvas size and the RIFF length are checked here, libwebp decodes."""

from __future__ import annotations

import io
import threading
from contextlib import nullcontext

from PIL import Image, WebPImagePlugin

from jrm_service.errors import InvalidImage

from .orientation import read_orientation

# libwebp's animation decoder, which pillow uses for still images too, holds two RGBA canvases and its own working
# memory while the frame is copied out twice.
_BYTES_PER_PIXEL = 28
# A lossless stream may have prefix codes of its own for every block of 4 x 4 pixels, at most 65,536 sets of them. A
# set takes 20 bits in the file and up to 14 kB in libwebp. Ordinary files have a few sets, and a hostile file is only
# recognised once it is decoded: so only one lossless stream that could need much is decoded at a time.
_MOST_CODES, _BITS_OF_CODES, _BYTES_OF_CODES, _BYTES_OF_TABLES = 65_536, 20, 14_000, 64
_MUCH = 8 * 2**20
_LOSSLESS = (b"VP8L", b"ALPH", b"ANMF")  # chunks that may hold such a stream
_one_at_a_time = threading.Lock()


def matches(data: bytes) -> bool:
    """Whether these bytes claim to be a WebP file."""
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def read_header(data: bytes) -> tuple[int, int, int]:
    """Read the canvas size from the first chunk (VP8, VP8L or VP8X): (width, height, bytes that decoding takes for a
    pixel). Raises InvalidImage.
    """
    if len(data) < 30 or 8 + int.from_bytes(data[4:8], "little") > len(data):
        raise InvalidImage("truncated WebP")
    kind, body = data[12:16], data[20:30]
    width = height = 0
    if kind == b"VP8X":
        width, height = int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    elif kind == b"VP8L" and body[0] == 0x2F:
        bits = int.from_bytes(body[1:5], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":
        width, height = (int.from_bytes(body[at : at + 2], "little") & 0x3FFF for at in (6, 8))
    if not (width and height):
        raise InvalidImage("damaged WebP: no usable header")
    return width, height, _BYTES_PER_PIXEL


def code_bytes(data: bytes) -> int:
    """Upper bound of what libwebp allocates for prefix codes, if the file is as hostile as possible."""
    if not any(chunk in data for chunk in _LOSSLESS):
        return 0
    width, height, _ = read_header(data)
    blocks = -(-width // 4) * -(-height // 4)
    codes = min(_MOST_CODES, blocks, 8 * len(data) // _BITS_OF_CODES)
    return codes * _BYTES_OF_CODES + len(data) * _BYTES_OF_TABLES


def read_image(data: bytes) -> tuple[Image.Image, int]:
    """Decode the image, or the first frame of an animation on its canvas: (RGB or RGBA image, EXIF orientation).

    May raise anything that pillow raises. Pillow neither parses the metadata chunks here nor warns about them.
    """
    with _one_at_a_time if code_bytes(data) > _MUCH else nullcontext():
        image = WebPImagePlugin.WebPImageFile(io.BytesIO(data))
        image.load()
    return image, read_orientation(image.info.get("exif"), image.info.get("xmp"))
