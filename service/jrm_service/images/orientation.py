"""The EXIF orientation of an image, read without pillow: its EXIF reader raises and warns on damaged metadata."""

from __future__ import annotations

import re
import struct

from PIL.Image import Transpose

PREFIX = b"Exif\0\0"
_ORIENTATION_TAG = 0x0112
_VALUE_FORMATS = {1: "B", 3: "H", 4: "I"}  # TIFF types BYTE, SHORT, LONG; writers should use SHORT
_PREFIXES = re.compile(rb"(?:Exif\0\0){0,2}+")  # some writers repeat it; pillow removes two
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')

TRANSPOSE = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
"""EXIF orientation -> the operation that makes the image upright. With any other value it is upright already."""


def read_orientation(exif: bytes | None, xmp: bytes | None) -> int:
    """Return the orientation that the EXIF block states, else the one in the XMP packet, else 1 (upright).

    ``exif`` is a TIFF block with or without its ``Exif\\0\\0`` prefix. Metadata that cannot be read counts as absent:
    it says nothing about the pixels, so it is no reason to refuse them.
    """
    try:
        stated = _from_exif(exif or b"")
    except struct.error:  # the block ends before its directory does
        stated = None
    if stated is None and xmp and (match := _XMP_ORIENTATION.search(xmp)):
        stated = int(match[1])
    return 1 if stated is None else stated


def _from_exif(exif: bytes) -> int | None:
    exif = _PREFIXES.sub(b"", exif, count=1)
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return None
    (directory,) = struct.unpack_from(f"{order}I", exif, 4)
    (count,) = struct.unpack_from(f"{order}H", exif, directory)
    stated = None
    end = min(directory + 2 + 12 * count, len(exif) - 11)
    for entry in range(directory + 2, end, 12):
        tag, kind, values = struct.unpack_from(f"{order}HHI", exif, entry)
        if tag == _ORIENTATION_TAG and values == 1 and kind in _VALUE_FORMATS:
            (stated,) = struct.unpack_from(order + _VALUE_FORMATS[kind], exif, entry + 8)
    return stated
