"""PNG: chunks, checksums and the amount of pixel data are checked here; pillow only undoes the row filters.

Pillow does not check the CRC of image data, and a compressed stream that ends early leaves the rest of the image black
without an error. It also parses text chunks and warns about animation chunks, so it is given only the image data.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import _MODES

from jrm_service.errors import InvalidImage

from .orientation import PREFIX, read_orientation

MAX_CHUNKS = 100_000  # a 64 MiB file in libpng's default chunks of 8 KiB has 8,192
MAX_TEXT_BYTES = 1 << 20  # of a text chunk, compressed or not; orientation is found in less
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CRITICAL = re.compile(rb"IHDR(PLTE)?(IDAT)*IEND")
_PALETTE = 3
_SAMPLES = {0: 1, 2: 3, _PALETTE: 1, 4: 2, 6: 4}  # colour type -> samples of a pixel
# Colour type -> modes in which pillow shows the low bytes of 16-bit samples, and the bands that are then colours.
_LOW_BYTES = {2: ("RGB", "RGB;16L", "RGB"), 4: ("RGBA", "RGBA", "G"), 6: ("RGB", "RGBX;16L", "RGB")}
# x and y of the first pixel, x and y step of each Adam7 pass.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def matches(data: bytes) -> bool:
    """Whether these bytes claim to be a PNG file."""
    return data.startswith(_SIGNATURE)


def read_header(data: bytes) -> tuple[int, int, int]:
    """Read only the header chunk: (width, height, bytes that decoding takes per pixel). Raises InvalidImage."""
    width, height, bits = _read_ihdr(data)[:3]
    # Scanlines are held up to three times (inflated, packed, and packed in pieces), and then up to three pillow images.
    return width, height, 3 * -(-bits // 8) + 12


def read_image(data: bytes) -> tuple[Image.Image, int]:
    """Decode the still image, or the default image of an animation: (image in its own mode, EXIF orientation).

    Raises InvalidImage for a damaged or truncated file: every checksum has to match, and the pixel data has to fill
    the image. It also does so for 16-bit samples that are all below 256 and not all 0, which would become black.
    """
    width, height, bits, colour_type, interlaced = _read_ihdr(data)
    chunks = list(_chunks(data))
    if not _CRITICAL.fullmatch(b"".join(kind for kind, _ in chunks if kind[:1].isupper())):
        raise InvalidImage("damaged PNG: a critical chunk is unknown or out of place")
    palette = b"".join(body for kind, body in chunks if kind == b"PLTE")
    if colour_type == _PALETTE and not palette:
        raise InvalidImage("damaged PNG: no palette")
    compressed = b"".join(body for kind, body in chunks if kind == b"IDAT")
    # Level 0 stores the bytes uncompressed: the pixel data is inflated once, here, and pillow only copies it.
    scanlines = zlib.compress(_inflate(compressed, _scanline_bytes(width, height, bits, interlaced)), 0)
    depth = bits // _SAMPLES[colour_type]
    mode, raw_mode = _MODES[depth, colour_type]
    image = Image.frombytes(mode, (width, height), scanlines, "zip", raw_mode, interlaced)
    if depth == 16 and _fits_into_8_bits(image, colour_type, scanlines, interlaced):
        raise InvalidImage("a 16-bit image whose values fit into 8 bits: save it as 8-bit")
    if colour_type == _PALETTE:
        image.putpalette(palette)
    exif = next((PREFIX + body for kind, body in reversed(chunks) if kind == b"eXIf"), None)  # as pillow does
    return image, read_orientation(exif or _profile(chunks), _text(chunks, b"XML:com.adobe.xmp"))


def _fits_into_8_bits(image: Image.Image, colour_type: int, scanlines: bytes, interlaced: int) -> bool:
    """Whether the colours of a 16-bit image are all below 256, and not all 0."""
    if colour_type == 0:
        return bool(0 < np.asarray(image).max() < 256)
    if any(band.getbbox() for band in image.split()[:3]):
        return False
    mode, raw_mode, colours = _LOW_BYTES[colour_type]
    low_bytes = Image.frombytes(mode, image.size, scanlines, "zip", raw_mode, interlaced)
    return any(low_bytes.getchannel(colour).getbbox() for colour in colours)


def _read_ihdr(data: bytes) -> tuple[int, int, int, int, int]:
    """(width, height, bits per pixel, colour type, 1 if interlaced)."""
    kind, body = next(_chunks(data))
    if kind != b"IHDR" or len(body) != 13:
        raise InvalidImage("damaged PNG: no image header")
    width, height, depth, colour_type, compression, filtering, interlaced = struct.unpack(">IIBBBBB", body)
    known = (depth, colour_type) in _MODES and (compression, filtering) == (0, 0) and interlaced < 2
    if not known or not (0 < width < 2**31 and 0 < height < 2**31):
        raise InvalidImage("damaged PNG: impossible image header")
    return width, height, depth * _SAMPLES[colour_type], colour_type, interlaced


def _scanline_bytes(width: int, height: int, bits_per_pixel: int, interlaced: int) -> int:
    """Bytes of all scanlines with their filter bytes, before compression."""
    total = 0
    for x, y, step_x, step_y in _ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - x) // step_x), -(-(height - y) // step_y)
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * bits_per_pixel + 7) // 8)
    return total


def _inflate(compressed: bytes, size: int) -> bytes:
    """Exactly ``size`` bytes of scanlines. More in the file is ignored, as libpng does; fewer is an error."""
    stream = zlib.decompressobj()
    try:
        scanlines = stream.decompress(compressed, size + 1)
    except zlib.error:
        raise InvalidImage("damaged PNG: corrupt image data") from None
    if len(scanlines) < size or (len(scanlines) == size and not stream.eof):
        raise InvalidImage("truncated PNG: image data is missing")
    return scanlines[:size]


def _profile(chunks: list[tuple[bytes, memoryview]]) -> bytes | None:
    """The hexadecimal EXIF block that ImageMagick writes into a text chunk."""
    try:
        return bytes.fromhex("".join(_text(chunks, b"Raw profile type exif").decode("latin-1").split("\n")[3:]))
    except ValueError:
        return None


def _text(chunks: list[tuple[bytes, memoryview]], key: bytes) -> bytes:
    """The text under a key, at most ``MAX_TEXT_BYTES`` of it. Of several, the last one, and only it is inflated."""
    for kind, body in reversed(chunks):
        if kind in (b"tEXt", b"zTXt", b"iTXt") and body[: len(key) + 1] in (key, key + b"\0"):
            rest = bytes(body[len(key) + 1 :])
            if kind == b"iTXt":  # skip the language and the translated key; zTXt has only one byte here
                rest = rest[:1] + rest[2:].partition(b"\0")[2].partition(b"\0")[2]
            compressed = kind == b"zTXt" or (kind == b"iTXt" and rest[:1] == b"\1")
            rest = rest[kind != b"tEXt" :]
            try:
                return zlib.decompressobj().decompress(rest, MAX_TEXT_BYTES) if compressed else rest[:MAX_TEXT_BYTES]
            except zlib.error:
                break
    return b""


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Yield (kind, body) up to and including IEND; every chunk is whole and its CRC matches."""
    view = memoryview(data)
    start = len(_SIGNATURE)
    for _ in range(MAX_CHUNKS):
        if start + 12 > len(data):
            raise InvalidImage("truncated PNG")
        length, kind = struct.unpack_from(">I4s", data, start)
        end = start + 12 + length
        if end > len(data):
            raise InvalidImage("truncated PNG")
        if zlib.crc32(view[start + 4 : end - 4]) != int.from_bytes(view[end - 4 : end]):
            raise InvalidImage("damaged PNG: a checksum does not match")
        yield kind, view[start + 8 : end - 4]
        if kind == b"IEND":
            return
        start = end
    raise InvalidImage("damaged PNG: too many chunks")
