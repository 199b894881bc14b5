"""The pictures of /v1/watch: an image's own file if it is small, else a thumbnail. Runs in a thread."""

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
_MOST_DECODED_BYTES = 64 * 1024 * 1024  # at one moment, beyond what requests may take
_MEDIA_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WebP": "image/webp"}  # browsers do not show PPM


@dataclass(frozen=True, slots=True)
class Picture:
    """An image file that browsers show. ``id`` is a digest of the file that was sent, so equal files are kept once."""

    id: str
    content: bytes
    media_type: str


def picture_of(image: ImageInput, *, may_decode: bool) -> Picture | None:
    """The picture of an image: the file as it was sent if that is small, else at most SIDE pixels wide and high.

    None if there is nothing to show: no image, a damaged one, one that takes over 64 MiB to decode (at least 1.8
    Mpixel; 3.1 for a JPEG or an 8-bit PNG), or one that has to be decoded while not ``may_decode``.
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
