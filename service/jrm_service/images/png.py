"""PNG: chunks, checksums and the amount of pixel data are checked here; pillow only undoes the row filters.

Pillow 13 does not check the CRC of image data, and a compressed stream that ends early leaves the rest of the image
black without an error. It also parses text chunks and warns about animation chunks, so it is handed the image
data alone.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import _MODES

from jrm_service.errors import InvalidImage

from .orientation import PREFIX, read_orientation

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_CHUNKS = 100_000  # a 64 MiB file in libpng's default chunks of 8 KiB has 8,192
MAX_TEXT_BYTES = 1 << 20  # of a text chunk, compressed or not; orientation is found in less
_PALETTE = 3
_SAMPLES = {0: 1, 2: 3, _PALETTE: 1, 4: 2, 6: 4}  # colour type -> samples of a pixel
# Colour type -> what makes pillow show the low bytes of 16-bit samples, and the bands that then have colours.
_LOW_BYTES = {
    0: ("LA", "LA", slice(1, 2)),
    2: ("RGB", "RGB;16L", slice(3)),
    4: ("RGBA", "RGBA", slice(1, 2)),
    6: ("RGBA", "RGBA;16L", slice(3)),
}
# x and y of the first pixel, x and y step of each Adam7 pass.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_PROFILE, _XMP = b"Raw profile type exif", b"XML:com.adobe.xmp"


def matches(data: bytes) -> bool:
    """Whether these bytes claim to be a PNG file."""
    return data.startswith(SIGNATURE)


def read_header(data: bytes) -> tuple[int, int, int]:
    """Read the image header chunk alone: (width, height, bytes that decoding takes for a pixel). Raises InvalidImage."""
    width, height, bits = _read_ihdr(data)[:3]
    # Scanlines are held up to three times (inflated, packed, and packed in pieces), and then up to three pillow images.
    return width, height, 3 * -(-bits // 8) + 12


def read_image(data: bytes) -> tuple[Image.Image, int]:
    """Decode the still image, or the default image of an animation: (image in its own mode, EXIF orientation).

    Raises InvalidImage for a damaged or truncated file: every checksum has to match, and the pixel data has to fill
    the image. Also for 16-bit samples that are all below 256 and not all 0, which would become black.
    """
    width, height, bits, colour_type, interlaced = _read_ihdr(data)
    palette = b""
    compressed: list[memoryview] = []
    texts: dict[bytes, tuple[bytes, bytes]] = {}
    exif = None
    for number, (kind, body) in enumerate(_chunks(data)):
        if kind == b"IDAT":
            compressed.append(body)
        elif kind == b"IHDR" and number:
            raise InvalidImage("damaged PNG: more than one image header")
        elif kind == b"PLTE" and compressed and colour_type == _PALETTE:  # it belongs in front of it
            raise InvalidImage("damaged PNG: the palette is behind the image data")
        elif kind == b"PLTE":
            palette = bytes(body)
        elif kind[:1].isupper() and kind not in (b"IHDR", b"IEND"):
            raise InvalidImage("unsupported PNG: a critical chunk of an unknown kind")
        elif kind == b"eXIf":
            exif = PREFIX + body  # as pillow has it
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            key, _, rest = bytes(body).partition(b"\0")
            # The last of a kind counts, as for pillow; it alone is inflated, because there may be a million of them.
            if key in (_PROFILE, _XMP):
                texts[key] = kind, rest
    if colour_type == _PALETTE and not palette:
        raise InvalidImage("damaged PNG: no palette")
    mode, raw_mode = _MODES[bits // _SAMPLES[colour_type], colour_type]
    # Level 0 stores the bytes as they are: the pixel data is inflated once, here, and only copied by pillow.
    scanlines = zlib.compress(_inflate(compressed, _scanline_bytes(width, height, bits, interlaced)), 0)
    image = Image.frombytes(mode, (width, height), scanlines, "zip", raw_mode, int(interlaced))
    if bits // _SAMPLES[colour_type] == 16 and _is_black(image):
        low_mode, low_raw_mode, colours = _LOW_BYTES[colour_type]
        low = Image.frombytes(low_mode, (width, height), scanlines, "zip", low_raw_mode, int(interlaced))
        if any(band.getbbox() for band in low.split()[colours]):
            raise InvalidImage("a 16-bit image whose values fit into 8 bits: save it as 8-bit")
    if colour_type == _PALETTE:
        image.putpalette(palette)
    return image, read_orientation(exif or _profile(texts), _text(texts, _XMP))


def _is_black(image: Image.Image) -> bool:
    """Whether the high bytes of all colours of a 16-bit image are 0."""
    if image.mode == "I;16":
        return bool(np.asarray(image).max() < 256)
    return not any(band.getbbox() for band in image.split()[:3])


def _read_ihdr(data: bytes) -> tuple[int, int, int, int, bool]:
    """(width, height, bits per pixel, colour type, whether it is interlaced)."""
    kind, body = next(_chunks(data))
    if kind != b"IHDR" or len(body) != 13:
        raise InvalidImage("damaged PNG: no image header")
    width, height, depth, colour_type, compression, filtering, interlace = struct.unpack(">IIBBBBB", body)
    if (
        (depth, colour_type) not in _MODES
        or (compression, filtering) != (0, 0)
        or interlace > 1
        or not (0 < width < 2**31 and 0 < height < 2**31)
    ):
        raise InvalidImage("damaged PNG: impossible image header")
    return width, height, depth * _SAMPLES[colour_type], colour_type, interlace == 1


def _scanline_bytes(width: int, height: int, bits_per_pixel: int, interlaced: bool) -> int:
    """Bytes of all scanlines with their filter bytes, before compression."""
    total = 0
    for x, y, step_x, step_y in _ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - x) // step_x), -(-(height - y) // step_y)
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * bits_per_pixel + 7) // 8)
    return total


def _profile(texts: dict[bytes, tuple[bytes, bytes]]) -> bytes | None:
    """The hexadecimal EXIF block that ImageMagick writes into a text chunk."""
    try:
        return bytes.fromhex("".join(_text(texts, _PROFILE).decode("latin-1").split("\n")[3:]))
    except ValueError:
        return None


def _text(texts: dict[bytes, tuple[bytes, bytes]], key: bytes) -> bytes:
    """The text behind the key of a text chunk, at most ``MAX_TEXT_BYTES`` of it."""
    kind, rest = texts.get(key, (b"tEXt", b""))
    compressed = kind == b"zTXt"
    if compressed:
        rest = rest[1:]
    elif kind == b"iTXt":
        compressed = rest[:1] == b"\1"
        rest = rest[2:].partition(b"\0")[2].partition(b"\0")[2]  # behind the language and the translated key
    try:
        return zlib.decompressobj().decompress(rest, MAX_TEXT_BYTES) if compressed else rest[:MAX_TEXT_BYTES]
    except zlib.error:
        return b""


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Yield (kind, body) up to and including IEND; every chunk is whole and its CRC matches."""
    view = memoryview(data)
    start = len(SIGNATURE)
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


def _inflate(compressed: list[memoryview], size: int) -> memoryview:
    """Exactly ``size`` bytes of scanlines. More in the file is ignored, as libpng does; fewer is an error."""
    stream = zlib.decompressobj()
    try:
        scanlines = stream.decompress(b"".join(compressed), size + 1)
    except zlib.error:
        raise InvalidImage("damaged PNG: corrupt image data") from None
    if len(scanlines) < size or (len(scanlines) == size and not stream.eof):
        raise InvalidImage("truncated PNG: image data is missing")
    return memoryview(scanlines)[:size]
