"""JPEG: the segments are checked and sifted here, libjpeg decodes.

Of the application segments only JFIF (APP0) and Adobe (APP14) change what the pixels are. The others are left out of
what pillow sees, because it warns about damaged EXIF and multi-picture data and opens the latter as another format.

libjpeg makes up what a scan lacks (gray, if all of it) and tells pillow nothing. ``_decode`` has two ways to see that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from PIL import Image, ImageChops

from jrm_service.errors import InvalidImage

from .header import Header
from .orientation import PREFIX, read_orientation

MAX_SEGMENTS = 2_000  # a 64 MiB file that is all full-length segments has 1,025
MAX_SCANS = 128  # every scan costs a walk over the whole image, however few bytes it has; progressive files have ~10
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_HUFFMAN_SEQUENTIAL, _SEQUENTIAL = frozenset({0xC0, 0xC1}), frozenset({0xC0, 0xC1, 0xC9})
_ARITHMETIC = frozenset({0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})
_CODES, _RESTART, _END_OF_IMAGE, _START_OF_SCAN, _INTERVAL, _APP1 = 0xC4, 0xD0, 0xD9, 0xDA, 0xDD, 0xE1
_LEFT_OUT = frozenset({*range(0xE1, 0xEE), 0xEF, 0xFE})
_MODES = {1: ("L", "L"), 3: ("RGB", "RGB"), 4: ("CMYK", "CMYK;I")}  # components -> pillow's modes
_END = b"\xff\xd9"
# Put behind a scan: skipped if it is complete, pixels where data is missing. Not so with arithmetic coding, whose
# encoders drop trailing zeros. No byte begins with a long run of ones: libjpeg takes what is no code for zeros, too.
# Long enough to get past a unit's blocks outside the image, of up to 63 coefficients, to one that shows.
_PROBE = b"\xd9\x6b\x35\xb5" * 1024
_LOOKAHEAD = 7  # bytes; libjpeg fills a buffer of 57 bits before it looks at the last one
_PADDINGS = (b"\0", b"\x55", b"\xaa", b"\x6d\xb6\xdb", b"\xfe")
_SMALL = 256 * 256  # pixels; a second decoding of a smaller image costs little
_MARKER = re.compile(rb"\xff([^\x00\xff])", re.DOTALL)
_SEGMENT = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])", re.DOTALL)  # the markers that have a body, and the end
_XMP = b"http://ns.adobe.com/xap/1.0/\0"


def matches(data: bytes) -> bool:
    """Whether these bytes claim to be a JPEG file."""
    return data.startswith(b"\xff\xd8\xff")


def read_header(data: bytes) -> Header:
    """Walk the segments to the frame header. Raises InvalidImage."""
    for marker, start, end in _segments(data):
        if marker in _START_OF_FRAME:
            width, height = _size(data[start:end])
            if end - start < 6 or not width or not height:
                break
            # While a progressive file is decoded, each pixel has 2 bytes for each of up to four components.
            return Header(width, height, 20)
        if marker == _START_OF_SCAN:
            break
    raise InvalidImage("damaged JPEG: no usable frame header")


def read_image(data: bytes) -> tuple[Image.Image, int]:
    """Decode at full size: (image in its own mode, EXIF orientation). Of a multi-picture file, the first picture.

    Raises InvalidImage for a damaged or truncated file, also for one that was cut and then closed again, with whatever
    markers (but see ``_padding``). JPEG has no checksums: other damage inside the scan data decodes to whatever libjpeg
    makes of it, as in every other program.
    """
    parts = [data[:2]]
    exif: list[bytes] = []
    xmp = None
    frames: list[tuple[int, bytes]] = []
    codes: dict[int, bytes] = {}
    scans: list[int] = []  # where in ``parts`` their data is
    interval = begun = 0
    for marker, start, end in _segments(data):
        body = data[start:end]
        if marker in _START_OF_FRAME:
            frames.append((marker, body))
        elif marker == _CODES:
            codes |= _ac_codes(body)
        elif marker == _INTERVAL:
            interval = int.from_bytes(body[:2])
        elif marker == _APP1 and not scans and body.startswith(PREFIX):
            exif.append(body[len(PREFIX) * bool(exif) :])
        elif marker == _APP1 and not scans and body.startswith(_XMP):
            xmp = body
        if marker not in _LEFT_OUT:
            parts.append(data[start - 4 : end])
        if marker == _START_OF_SCAN:
            if len(frames) != 1:
                raise InvalidImage(f"damaged JPEG: {'more than one' if frames else 'no'} frame header")
            kind, frame = frames[0]
            stop = _scan_end(data, end, _restarts(frame, body, interval))
            scans.append(len(parts))
            parts.append(data[end:stop].rstrip(b"\xff"))
            if len(scans) > MAX_SCANS:
                raise InvalidImage(f"unsupported JPEG: more than {MAX_SCANS} scans")
            if kind in _SEQUENTIAL and body[0] == frame[5]:  # that was all, and libjpeg reads no further
                if data.find(_END, stop) < 0:
                    raise InvalidImage("truncated JPEG")
                padding = _padding(codes.get(body[2 * body[0]] & 15)) if kind in _HUFFMAN_SEQUENTIAL else None
                return _decode(frame, parts, scans, kind, padding), read_orientation(b"".join(exif), xmp)
            begun += body[0] if body[-3] == 0 and body[-1] < 16 else 0  # components that have their first scan here
    if begun < frame[5]:
        raise InvalidImage("truncated JPEG: image data is missing")
    return _decode(frame, parts, scans, kind, None), read_orientation(b"".join(exif), xmp)


def _decode(frame: bytes, parts: list[bytes], scans: list[int], kind: int, padding: bytes | None) -> Image.Image:
    """The image, if no data is missing. ``parts`` is the file without an end-of-image marker.

    Without that marker libjpeg waits for what is missing instead of making it up: with ``padding`` to look at, one
    decoding is enough for a large image. Otherwise one more, with bytes behind each scan, has to give the same pixels.
    """
    width, height = _size(frame)
    try:
        image = _pixels(frame, [*parts, padding or _END])
    except ValueError:
        _pixels(frame, [*parts, _END])  # fails again, unless it is for missing data
        raise InvalidImage("truncated JPEG: image data is missing") from None
    if padding and width * height >= _SMALL:
        return image
    if kind not in _ARITHMETIC:
        probed = list(parts)
        for scan in scans:
            probed[scan] += _PROBE
        if ImageChops.difference(image, _pixels(frame, [*probed, _END])).getbbox():
            raise InvalidImage("truncated JPEG: image data is missing")
    return image


def _pixels(frame: bytes, parts: list[bytes]) -> Image.Image:
    """What libjpeg makes of a file of these parts. Raises ValueError where it waits for more."""
    mode, raw_mode = _MODES[frame[5]]
    return Image.frombytes(mode, _size(frame), b"".join(parts), "jpeg", raw_mode, "")


def _size(frame: bytes) -> tuple[int, int]:
    return int.from_bytes(frame[3:5]), int.from_bytes(frame[1:3])


def _restarts(frame: bytes, scan: bytes, interval: int) -> int:
    """How many restart markers a scan has, when there is one behind every ``interval`` units but the last."""
    if not interval:
        return 0
    sampling = [(frame[at], frame[at + 1] >> 4, frame[at + 1] & 15) for at in range(6, 6 + 3 * frame[5], 3)]
    largest_x, largest_y = max(x for _, x, _ in sampling), max(y for _, _, y in sampling)
    # With several components in the scan a unit has blocks of each; with one it is a block of that one.
    own_x, own_y = next((x, y) for name, x, y in sampling if name == scan[1]) if scan[0] == 1 else (1, 1)
    width, height = _size(frame)
    columns, rows = -(-width * own_x // (8 * largest_x)), -(-height * own_y // (8 * largest_y))
    return (columns * rows - 1) // interval


def _scan_end(data: bytes, start: int, restarts: int) -> int:
    """Where the data of a scan ends: at the first marker that is none of its restarts. Raises InvalidImage.

    A restart marker behind the last unit belongs to no scan: what was cut may have been closed with one.
    """
    for number, found in enumerate(_MARKER.finditer(data, start)):
        if number == restarts:
            return found.start()
        if found[1][0] != _RESTART + number % 8:
            raise InvalidImage("truncated JPEG: image data is missing")
    raise InvalidImage("truncated JPEG")


def _ac_codes(body: bytes) -> dict[int, bytes]:
    """{table: 16 counts and the symbols} of the AC tables in one segment of Huffman tables."""
    tables = {}
    while len(body) > 16:
        end = 17 + sum(body[1:17])
        if body[0] & 0x10:
            tables[body[0] & 15] = body[1:end]
        body = body[end:]
    return tables


@lru_cache(maxsize=256)
def _padding(codes: bytes | None) -> bytes | None:
    """Bytes that libjpeg may look ahead into but that never make up a block, whatever bit it begins at.

    ``codes`` are those of the last block of the scan, as ``_ac_codes`` has them. When the data ends inside that block,
    the padding may still complete it: the one thing that a single decoding does not tell. None: there are no such bytes
    for these codes.
    """
    if codes is None or len(codes) < 17:
        return None
    table: dict[str, int] = {}
    code, symbols = 0, iter(codes[16:])
    for length, count in enumerate(codes[:16], 1):
        for symbol in [next(symbols, 0) for _ in range(count)]:
            table[f"{code:0{length}b}"] = symbol
            code += 1
        code <<= 1
    for pattern in _PADDINGS:
        padding = (pattern * _LOOKAHEAD)[:_LOOKAHEAD]
        if max(_coefficients(f"{int.from_bytes(padding):0{8 * _LOOKAHEAD}b}", table)) < 63:
            return padding
    return None


def _coefficients(bits: str, table: dict[str, int]) -> list[int]:
    """How many of the 63 AC coefficients of a block ``bits`` decode to, for each bit to begin at."""
    filled = [0] * (len(bits) + 32)
    for position in reversed(range(len(bits))):
        ends = range(position + 1, min(position + 16, len(bits)) + 1)
        end = next((end for end in ends if bits[position:end] in table), None)
        if end is not None:
            run, size = divmod(table[bits[position:end]], 16)
            ends_block = size == 0 and run != 15
            filled[position] = 63 if ends_block else min(63, run + 1 + filled[end + size])
        elif len(ends) == 16:  # no code: libjpeg takes it for the end of the block
            filled[position] = 63
    return filled[: len(bits)]


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, start, end of its body) up to the end-of-image marker. The data of scans is skipped."""
    position, scanned = 2, False
    for _ in range(MAX_SEGMENTS):
        found = _SEGMENT.search(data, position)
        if found is None:
            raise InvalidImage("truncated JPEG")
        marker = found[1][0]
        position = found.end()
        if marker == _END_OF_IMAGE and scanned:
            return
        length = int.from_bytes(data[position : position + 2])
        if length == 1 or marker == _END_OF_IMAGE:
            raise InvalidImage("damaged JPEG: no image data")
        if length == 0 or position + length > len(data):
            raise InvalidImage("truncated JPEG")
        yield marker, position + 2, position + length
        scanned |= marker == _START_OF_SCAN
        position += length
    raise InvalidImage("damaged JPEG: too many segments")
