"""PNG: chunks, checksums and the amount of pixel data are checked here; pillow only undoes the row filters.

Pillow 13 does not check the CRC of image data, and a compressed stream that ends early leaves the rest of the image
black without an error. It also parses text chunks and warns about animation chunks, so it is handed a file of
nothing but the chunks that make pixels.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from PIL import Image, PngImagePlugin

from jrm_service.errors import InvalidImage

from .header import Header
from .orientation import PREFIX, read_orientation

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_CHUNKS = 100_000  # a 64 MiB file in libpng's default chunks of 8 KiB has 8,192
MAX_TEXT_BYTES = 1 << 20  # of a text chunk, compressed or not; orientation is found in less
_LARGEST_SIDE = 2**31 - 1

# (bit depth, colour type) -> bits per pixel, PNG specification (third edition), table 11.1.
_BITS_PER_PIXEL = {
    **{(depth, 0): depth for depth in (1, 2, 4, 8, 16)},
    **{(depth, 2): depth * 3 for depth in (8, 16)},
    **{(depth, 3): depth for depth in (1, 2, 4, 8)},
    **{(depth, 4): depth * 2 for depth in (8, 16)},
    **{(depth, 6): depth * 4 for depth in (8, 16)},
}
_PALETTE = 3
# x and y of the first pixel, x and y step of each Adam7 pass.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def matches(data: bytes) -> bool:
    """Whether these bytes claim to be a PNG file."""
    return data.startswith(SIGNATURE)


def read_header(data: bytes) -> Header:
    """Read the image header chunk alone. Raises InvalidImage."""
    ihdr = _Ihdr.parse(data)
    # Scanlines are held twice (inflated, and re-packed for pillow), and then up to three pillow images.
    return Header(ihdr.width, ihdr.height, 2 * -(-ihdr.bits_per_pixel // 8) + 12)


def read_image(data: bytes) -> tuple[Image.Image, int]:
    """Decode the still image, or the default image of an animation: (image in its own mode, EXIF orientation).

    Raises InvalidImage for a damaged or truncated file: every checksum has to match, and the pixel data has to fill
    the image.
    """
    ihdr = _Ihdr.parse(data)
    palette = b""
    compressed: list[memoryview] = []
    metadata = _Metadata()
    for number, (kind, body) in enumerate(_chunks(data)):
        if kind == b"IHDR" and number > 0:
            raise InvalidImage("damaged PNG: more than one image header")
        if kind == b"IDAT":
            compressed.append(body)
        elif kind == b"PLTE":
            if compressed and ihdr.colour_type == _PALETTE:  # pillow would show black
                raise InvalidImage("damaged PNG: the palette is behind the image data")
            palette = bytes(body)
        elif kind[:1].isupper() and kind not in (b"IHDR", b"IEND"):
            raise InvalidImage("unsupported PNG: a critical chunk of an unknown kind")
        else:
            metadata.add(kind, body)
    if ihdr.colour_type == _PALETTE and not palette:
        raise InvalidImage("damaged PNG: no palette")
    # Level 0 stores the bytes as they are: the pixel data is inflated once, here, and only copied by pillow.
    stored = zlib.compress(_inflate(compressed, ihdr.scanline_bytes), 0)
    chunks = [(b"IHDR", ihdr.body), *([(b"PLTE", palette)] if palette else []), (b"IDAT", stored), (b"IEND", b"")]
    image = PngImagePlugin.PngImageFile(io.BytesIO(_file(chunks)))
    image.load()
    return image, read_orientation(metadata.exif, metadata.xmp)


@dataclass(frozen=True, slots=True)
class _Ihdr:
    body: bytes
    width: int
    height: int
    colour_type: int
    bits_per_pixel: int
    interlaced: bool

    @classmethod
    def parse(cls, data: bytes) -> _Ihdr:
        kind, view = next(_chunks(data))
        if kind != b"IHDR" or len(view) != 13:
            raise InvalidImage("damaged PNG: no image header")
        body = bytes(view)
        width, height, depth, colour_type, compression, filtering, interlace = struct.unpack(">IIBBBBB", body)
        bits = _BITS_PER_PIXEL.get((depth, colour_type))
        if (
            bits is None
            or (compression, filtering) != (0, 0)
            or interlace > 1
            or not (0 < width <= _LARGEST_SIDE and 0 < height <= _LARGEST_SIDE)
        ):
            raise InvalidImage("damaged PNG: impossible image header")
        return cls(body, width, height, colour_type, bits, interlace == 1)

    @property
    def scanline_bytes(self) -> int:
        """Bytes of all scanlines with their filter bytes, before compression."""
        passes = _ADAM7 if self.interlaced else ((0, 0, 1, 1),)
        total = 0
        for x, y, step_x, step_y in passes:
            columns = -(-(self.width - x) // step_x)
            rows = -(-(self.height - y) // step_y)
            if columns > 0 and rows > 0:
                total += rows * (1 + (columns * self.bits_per_pixel + 7) // 8)
        return total


@dataclass(slots=True)
class _Metadata:
    """The three places of a PNG file that may state an orientation."""

    chunk: bytes | None = None
    texts: dict[bytes, tuple[bytes, bytes]] = field(default_factory=dict)

    def add(self, kind: bytes, body: memoryview) -> None:
        if kind == b"eXIf":
            self.chunk = bytes(body)
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            key, _, rest = bytes(body).partition(b"\0")
            # The last of a kind counts, as for pillow; it alone is inflated, because there may be a million of them.
            if key in (b"Raw profile type exif", b"XML:com.adobe.xmp"):
                self.texts[key] = kind, rest

    @property
    def exif(self) -> bytes | None:
        """The EXIF chunk, else the hexadecimal profile that ImageMagick writes into a text chunk."""
        if self.chunk is not None:
            return PREFIX + self.chunk  # as pillow has it
        profile = self._text(b"Raw profile type exif").decode("latin-1")
        try:
            return bytes.fromhex("".join(profile.split("\n")[3:]))
        except ValueError:
            return None

    @property
    def xmp(self) -> bytes:
        return self._text(b"XML:com.adobe.xmp")

    def _text(self, key: bytes) -> bytes:
        return _text(*self.texts[key]) if key in self.texts else b""


def _text(kind: bytes, rest: bytes) -> bytes:
    """The text after the key of a text chunk, at most ``MAX_TEXT_BYTES`` of it."""
    compressed = kind == b"zTXt"
    if compressed:
        rest = rest[1:]
    elif kind == b"iTXt":
        compressed = rest[:1] == b"\1"
        _language, _, rest = rest[2:].partition(b"\0")
        _translated_key, _, rest = rest.partition(b"\0")
    if not compressed:
        return rest[:MAX_TEXT_BYTES]
    try:
        return zlib.decompressobj().decompress(rest, MAX_TEXT_BYTES)
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
        (crc,) = struct.unpack_from(">I", data, end - 4)
        if zlib.crc32(view[start + 4 : end - 4]) != crc:
            raise InvalidImage("damaged PNG: a checksum does not match")
        yield kind, view[start + 8 : end - 4]
        if kind == b"IEND":
            return
        start = end
    raise InvalidImage("damaged PNG: too many chunks")


def _file(chunks: list[tuple[bytes, bytes]]) -> bytes:
    parts = [SIGNATURE]
    for kind, body in chunks:
        parts += [struct.pack(">I", len(body)), kind, body, struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))]
    return b"".join(parts)


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
