"""What is kept of an image: its file where that is small, else a thumbnail. In a thread."""

from __future__ import annotations

import io
from dataclasses import dataclass

from jrm_service.errors import CandidateError
from jrm_service.images.decode import decode_behind, read_header
from jrm_service.images.reader import ImageInput

SIDE = 512
"""The longest side of a thumbnail, in pixels."""
SMALL_BYTES = 64 * 1024
_SMALL_PIXELS = 2 * 1024 * 1024  # a tiny file may hold a huge image, and a browser would decode it
_MOST_DECODED_BYTES = 64 * 1024 * 1024  # at one moment, beside what requests may take
_MEDIA_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WebP": "image/webp"}  # browsers know no PPM


@dataclass(frozen=True, slots=True)
class Picture:
    """An image file that browsers show. ``id`` is a digest of the file that was sent, so equal ones are kept once."""

    id: str
    content: bytes
    media_type: str


def picture_of(image: ImageInput, *, may_decode: bool) -> Picture | None:
    """What is kept of an image, at most SIDE pixels wide and high unless it is small as it came.

    None where there is nothing to show: no image, one that is damaged, or one that takes over 64 MiB to decode, which
    is at least 1.8 Mpixel (of a JPEG or an 8-bit PNG: 3.1); and for one that would have to be decoded, unless that
    ``may`` be.
    """
    if isinstance(image.data, CandidateError):
        return None
    try:
        header = read_header(image.data)
        pixels = header.width * header.height
        if len(image.data) <= SMALL_BYTES and pixels <= _SMALL_PIXELS and header.format in _MEDIA_TYPES:
            return Picture(image.key.hex(), image.data, _MEDIA_TYPES[header.format])
        if not may_decode or header.decoded_bytes > _MOST_DECODED_BYTES:
            return None
        rgb = decode_behind(header, image.data)
    except CandidateError:
        return None
    rgb.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    rgb.save(file, "JPEG", quality=85)
    return Picture(image.key.hex(), file.getvalue(), "image/jpeg")
