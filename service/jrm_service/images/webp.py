"""WebP: the canvas size and the RIFF length are read here, libwebp decodes."""

from __future__ import annotations

import io

from PIL import Image, WebPImagePlugin

from jrm_service.errors import InvalidImage

from .header import Header
from .orientation import read_orientation

# libwebp's animation decoder, which pillow uses for still images too, holds two RGBA canvases and its own working
# memory while the frame is copied out twice.
_BYTES_PER_PIXEL = 28
# A lossless stream may bring prefix codes of its own for every block of 4 x 4 pixels, at most 65,536 sets of them. A
# set costs the file 20 bits and libwebp 5 tables of 256 entries and a struct, 5.7 kB, or 8 kB more when its largest
# alphabet has a code of 11 bits; tables beyond that need a code length for each symbol in the file.
_MOST_CODES, _BITS_OF_CODES, _BYTES_OF_CODES, _BYTES_OF_TABLES = 65_536, 20, 14_000, 64
_LOSSLESS = frozenset({b"VP8L", b"ALPH", b"ANMF"})  # what may hold such a stream
_MAX_CHUNKS = 1_000  # beyond these the rest counts as one lossless stream


def matches(data: bytes) -> bool:
    """Whether these bytes claim to be a WebP file."""
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def read_header(data: bytes) -> Header:
    """Read the canvas size from the first chunk (VP8, VP8L or VP8X). Raises InvalidImage."""
    if len(data) < 30 or 8 + int.from_bytes(data[4:8], "little") > len(data):
        raise InvalidImage("truncated WebP")
    kind, body = data[12:16], data[20:30]
    if kind == b"VP8X":
        width, height = int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    elif kind == b"VP8L" and body[0] == 0x2F:
        bits = int.from_bytes(body[1:5], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":
        width, height = (int.from_bytes(body[at : at + 2], "little") & 0x3FFF for at in (6, 8))
    else:
        raise InvalidImage("damaged WebP: no usable header")
    if not (width and height):
        raise InvalidImage("damaged WebP: no usable header")
    return Header(width, height, _BYTES_PER_PIXEL, _code_bytes(_longest_lossless(data), width, height))


def read_image(data: bytes) -> tuple[Image.Image, int]:
    """Decode the image, or the first frame of an animation on its canvas: (RGB or RGBA image, EXIF orientation).

    May raise anything that pillow raises. Pillow neither parses the metadata chunks here nor warns about them.
    """
    image = WebPImagePlugin.WebPImageFile(io.BytesIO(data))
    image.load()
    return image, read_orientation(image.info.get("exif"), image.info.get("xmp"))


def _longest_lossless(data: bytes) -> int:
    """Bytes of the longest chunk that may be decoded as a lossless stream: only one of them is, at a time."""
    position, longest = 12, 0
    for _ in range(_MAX_CHUNKS):
        if position + 8 > len(data):
            return longest
        length = int.from_bytes(data[position + 4 : position + 8], "little")
        if data[position : position + 4] in _LOSSLESS:
            longest = max(longest, min(length, len(data) - position))
        position += 8 + length + length % 2
    return max(longest, len(data) - position)


def _code_bytes(stream_bytes: int, width: int, height: int) -> int:
    """Upper bound of what libwebp allocates for the prefix codes of a lossless stream."""
    blocks = -(-width // 4) * -(-height // 4)
    codes = min(_MOST_CODES, blocks, 8 * stream_bytes // _BITS_OF_CODES)
    return codes * _BYTES_OF_CODES + stream_bytes * _BYTES_OF_TABLES
