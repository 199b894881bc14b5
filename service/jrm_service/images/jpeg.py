"""JPEG: the segments before the first scan are checked and sifted here, libjpeg decodes.

Of the application segments only JFIF (APP0) and Adobe (APP14) change what the pixels are. The others are left out of
what pillow sees, because it warns about damaged EXIF and multi-picture data and opens the latter as another format.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress

from PIL import Image, ImageChops

from jrm_service.errors import InvalidImage

from .header import Header
from .orientation import PREFIX, read_orientation

MAX_SEGMENTS = 2_000  # before the first scan; a 64 MiB file that is all full-length segments has 1,025
MAX_SCANS = 128  # every scan costs a walk over the whole image, however few bytes it has; progressive files have ~10
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL_FRAME = frozenset({0xC0, 0xC1})
_ARITHMETIC_FRAME = frozenset({0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})
_WITHOUT_BODY = frozenset({0x01, *range(0xD0, 0xD9)})
_LEFT_OUT = frozenset({*range(0xE1, 0xEE), 0xEF, 0xFE})
_MODES = {1: ("L", "L"), 3: ("RGB", "RGB"), 4: ("CMYK", "CMYK;I")}  # components -> pillow's modes
_APP1, _START_OF_SCAN, _END_OF_IMAGE = 0xE1, b"\xff\xda", b"\xff\xd9"
# libjpeg makes up what a scan lacks (gray, if all of it) and tells pillow nothing. Bytes put after a scan show it: they
# are skipped behind a complete one and become pixels where data is missing. Not so with arithmetic coding, whose
# encoders drop trailing zeros.
_PROBE = b"\xfe\x6b\xd9\x35" * 16
# A sequential image needs no second decoding: without an end-of-image marker libjpeg waits for what is missing instead
# of making it up. It looks 7 bytes ahead, which are given; they are too few to stand in for more than a block or two.
_LOOKAHEAD = b"\x92\x49\x24\x92\x49\x24\x92"
_SMALL = 256 * 256  # pixels; of a smaller image two blocks are much, and a second decoding costs little
_MARKER = re.compile(rb"\xff([^\x00\xff])", re.DOTALL)
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
    raise InvalidImage("damaged JPEG: no usable frame header")


def read_image(data: bytes) -> tuple[Image.Image, int]:
    """Decode at full size: (image in its own mode, EXIF orientation). Of a multi-picture file, the first picture.

    Raises InvalidImage for a damaged or truncated file, also for one that was cut and then closed with an
    end-of-image marker (but see ``_LOOKAHEAD``). JPEG has no checksums: other damage inside the scan data decodes to
    whatever libjpeg makes of it, as in every other program.
    """
    kept = [data[:2]]
    exif: list[bytes] = []
    xmp = None
    frames: list[tuple[int, bytes]] = []
    scans = len(data)
    for marker, start, end in _segments(data):
        if marker in _START_OF_FRAME:
            frames.append((marker, data[start:end]))
        if marker == _APP1 and data.startswith(PREFIX, start, end):
            exif.append(data[start + len(PREFIX) * bool(exif) : end])
        elif marker == _APP1 and data.startswith(_XMP, start, end):
            xmp = data[start:end]
        if marker not in _LEFT_OUT:
            kept.append(data[start - 4 : end])
        scans = end
    if len(frames) != 1:
        raise InvalidImage("damaged JPEG: more than one frame header" if frames else "damaged JPEG: no frame header")
    finish = data.find(_END_OF_IMAGE, scans)
    if finish < 0:
        raise InvalidImage("truncated JPEG")
    kept.append(data[scans:finish])
    return _decode(*frames[0], kept), read_orientation(b"".join(exif), xmp)


def _decode(marker: int, frame: bytes, parts: list[bytes]) -> Image.Image:
    width, height = _size(frame)
    components_in_scan = parts[-2][4]
    if marker in _SEQUENTIAL_FRAME and components_in_scan == frame[5] and width * height >= _SMALL:
        with suppress(ValueError):  # data is missing
            return _pixels(frame, [*parts, _LOOKAHEAD])
    if parts[-1].count(_START_OF_SCAN) >= MAX_SCANS:
        raise InvalidImage(f"unsupported JPEG: more than {MAX_SCANS} scans")
    image = _pixels(frame, [*parts, _END_OF_IMAGE])
    probed = image if marker in _ARITHMETIC_FRAME else _pixels(frame, [*parts, _PROBE, _END_OF_IMAGE])
    if ImageChops.difference(image, probed).getbbox():
        raise InvalidImage("truncated JPEG: image data is missing")
    return image


def _pixels(frame: bytes, parts: list[bytes]) -> Image.Image:
    """What libjpeg makes of a file of these parts. Raises ValueError where it waits for more."""
    mode, raw_mode = _MODES[frame[5]]
    return Image.frombytes(mode, _size(frame), b"".join(parts), "jpeg", raw_mode, "")


def _size(frame: bytes) -> tuple[int, int]:
    return int.from_bytes(frame[3:5]), int.from_bytes(frame[1:3])


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, start, end of its body) up to and including the first start of scan."""
    position = 2
    for _ in range(MAX_SEGMENTS):
        found = _MARKER.search(data, position)
        if found is None:
            raise InvalidImage("truncated JPEG")
        marker = found[1][0]
        position = found.end()
        if marker in _WITHOUT_BODY:
            continue
        length = int.from_bytes(data[position : position + 2])
        if 0 < length < 2 or marker == _END_OF_IMAGE[1]:
            raise InvalidImage("damaged JPEG: no image data")
        if length == 0 or position + length > len(data):
            raise InvalidImage("truncated JPEG")
        yield marker, position + 2, position + length
        if marker == _START_OF_SCAN[1]:
            return
        position += length
    raise InvalidImage("damaged JPEG: too many segments")
