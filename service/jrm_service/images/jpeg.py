"""JPEG: segments are parsed here, libjpeg decodes.

Pillow's file class is not used: it warns about damaged metadata, joins it in quadratic time, and takes a multi-picture
file for another format. Its decoder gets the file scan by scan instead, because libjpeg silently makes up what a scan
lacks (gray, if all of it). It does so at a marker; at the end of its input it waits. So the input ends after each scan,
in a few bytes of padding that are skipped if the scan is whole, and do not suffice if it is not.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from PIL import Image

from jrm_service.errors import InvalidImage

from .orientation import PREFIX, read_orientation

MAX_SEGMENTS = 2_000  # a 64 MiB file that is all full-length segments has 1,025
MAX_SCANS = 128  # every scan costs a walk over the whole image, however few bytes it has; progressive files have ~10
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL, _PROGRESSIVE = frozenset({0xC0, 0xC1}), 0xC2
_RESTART, _END_OF_IMAGE, _START_OF_SCAN, _INTERVAL, _APP1 = 0xD0, 0xD9, 0xDA, 0xDD, 0xE1
_MODES = {1: ("L", "L"), 3: ("RGB", "RGB"), 4: ("CMYK", "CMYK;I")}  # components -> pillow's modes
_END = b"\xff\xd9"
_MARKER = re.compile(rb"\xff([^\x00\xff])", re.DOTALL)
_SEGMENT = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])", re.DOTALL)  # the markers that have a body, and the end
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
# Padding. libjpeg reads ahead until it holds 57 bits, so the last unit of a whole scan takes up to 7 of these bytes. In
# a truncated scan it may decode them as data, so they are bits that decode to little: in most code tables the first has
# no end of a block, and the second is no code at all, which costs 17 bits and repeats the colour of the block before.
_PADDING, _PADDING_OF_COLOURS = b"\xee" * 7, b"\xff\0" * 7


def matches(data: bytes) -> bool:
    """Whether these bytes claim to be a JPEG file."""
    return data.startswith(b"\xff\xd8\xff")


def read_header(data: bytes) -> tuple[int, int, int]:
    """Walk the segments to the frame header: (width, height, bytes that decoding takes for a pixel).

    Raises InvalidImage.
    """
    for marker, start, end in _segments(data):
        if marker in _START_OF_FRAME:
            if marker not in _SEQUENTIAL and marker != _PROGRESSIVE:
                # Hardly any program reads lossless and hierarchical files; arithmetic coding hides truncation.
                raise InvalidImage("unsupported JPEG: neither baseline nor progressive with Huffman codes")
            width, height = _size(data[start:end])
            if end - start < 6 or not width or not height:
                break
            return width, height, 20  # a progressive file has 2 bytes more for each of up to four components
        if marker == _START_OF_SCAN:
            break
    raise InvalidImage("damaged JPEG: no usable frame header")


def read_image(data: bytes) -> tuple[Image.Image, int]:
    """Decode at full size: (image in its own mode, EXIF orientation). Of a multi-picture file, the first picture.

    Raises InvalidImage for a damaged or truncated file, also for one that was cut and then closed again with any
    markers, unless very little is missing: bytes of the last block of a sequential file, or of the last few blocks of a
    scan of a progressive one. JPEG has no checksums: other damage inside the scan data decodes to something, as in
    every other program.
    """
    exif: list[bytes] = []
    xmp = None
    frame, kind, interval = b"", 0, 0
    begun: set[int] = set()  # components that have had their first scan
    pieces: list[tuple[memoryview, bytes]] = []  # the file up to the end of each scan, each with its padding
    view, position = memoryview(data), 0
    for marker, start, end in _segments(data):
        body = data[start:end]
        if marker in _START_OF_FRAME and not frame:
            frame, kind = body, marker
        elif marker == _INTERVAL:
            interval = int.from_bytes(body[:2])
        elif marker == _APP1 and not pieces and body.startswith(PREFIX):
            exif.append(body[len(PREFIX) * bool(exif) :])
        elif marker == _APP1 and not pieces and body.startswith(_XMP):
            xmp = body
        elif marker == _START_OF_SCAN:
            stop = _scan_end(data, end, _restarts(frame, body, interval))
            piece = view[position : end + len(data[end:stop].rstrip(b"\xff"))]
            pieces.append((piece, _PADDING_OF_COLOURS if body[-2] == 0 else _PADDING))
            position = stop
            if len(pieces) > MAX_SCANS:
                raise InvalidImage(f"unsupported JPEG: more than {MAX_SCANS} scans")
            if body[-3] == 0 and body[-1] < 16:
                begun.update(body[1 : 2 * body[0] : 2])
            if kind in _SEQUENTIAL and body[0] == frame[5]:  # the scan is complete, and libjpeg reads no further
                if data.find(_END, stop) < 0:
                    raise InvalidImage("truncated JPEG")
                break
    else:
        if len(begun) < frame[5]:
            raise InvalidImage("truncated JPEG: image data is missing")
    orientation = read_orientation(b"".join(exif), xmp)
    return _decode(frame, pieces), orientation


def _decode(frame: bytes, pieces: list[tuple[memoryview, bytes]]) -> Image.Image:
    """The image, if no scan lacks data."""
    mode, raw_mode = _MODES[frame[5]]
    image = Image.new(mode, _size(frame))
    decoder = Image._getdecoder(mode, "jpeg", (raw_mode, ""))
    decoder.setimage(image.im, (0, 0, *image.size))
    # After a whole scan libjpeg skips everything that is not a marker. Within one it goes back to the last unit that it
    # could finish, and then takes none of the two bytes because it wants 57 bits.
    parts = (part for piece, padding in pieces for part in (b"".join((piece, padding)), padding[:2]))
    for part in itertools.chain(parts, [_END]):
        taken, error = decoder.decode(part)
        if error:
            raise InvalidImage("damaged JPEG")
        if taken < 0:  # done: at the last line of a single scan, else at the end of the image
            return image
        if taken < len(part):
            break
    raise InvalidImage("truncated JPEG: image data is missing")


def _size(frame: bytes) -> tuple[int, int]:
    return int.from_bytes(frame[3:5]), int.from_bytes(frame[1:3])


def _restarts(frame: bytes, scan: bytes, interval: int) -> int:
    """How many restart markers a scan has, given one after every ``interval`` units but the last."""
    if not interval:
        return 0
    sampling = [(frame[at], frame[at + 1] >> 4, frame[at + 1] & 15) for at in range(6, 6 + 3 * frame[5], 3)]
    largest_x, largest_y = max(x for _, x, _ in sampling), max(y for _, _, y in sampling)
    # In a scan of several components a unit has blocks of each; in a scan of one it is one block.
    own_x, own_y = next((x, y) for name, x, y in sampling if name == scan[1]) if scan[0] == 1 else (1, 1)
    width, height = _size(frame)
    columns, rows = -(-width * own_x // (8 * largest_x)), -(-height * own_y // (8 * largest_y))
    return (columns * rows - 1) // interval


def _scan_end(data: bytes, start: int, restarts: int) -> int:
    """Where the data of a scan ends: at the first marker that is not one of its restarts. Raises InvalidImage.

    A restart marker after the last unit belongs to no scan: a truncated file may have been closed with one.
    """
    for number, match in enumerate(_MARKER.finditer(data, start)):
        if number == restarts:
            return match.start()
        if match[1][0] != _RESTART + number % 8:
            raise InvalidImage("truncated JPEG: image data is missing")
    raise InvalidImage("truncated JPEG")


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, start, end of its body) up to the end-of-image marker. The data of scans is skipped."""
    position, scanned = 2, False
    for _ in range(MAX_SEGMENTS):
        match = _SEGMENT.search(data, position)
        if match is None:
            raise InvalidImage("truncated JPEG")
        marker = match[1][0]
        position = match.end()
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
