"""Binary PPM (P6), decoded with numpy: pillow's own decoder loops over pixels in Python unless maxval is 255."""

from __future__ import annotations

import re

import numpy as np
from PIL import Image

from jrm_service.errors import InvalidImage

# Possessive repetition: a header that does not match fails in one pass over it. A gap begins with white space, because
# a comment right after a digit does not end the number: "2#\n2" is 22 to netpbm and pillow. Such a header is refused.
_GAP = rb"\s(?:\s|#[^\r\n]*+[\r\n])*+"
_HEADER = re.compile(rb"P6%b(\d{1,10})%b(\d{1,10})%b(\d{1,5})\s" % (_GAP, _GAP, _GAP))


def matches(data: bytes) -> bool:
    """Whether these bytes claim to be a binary PPM file."""
    return data[:2] == b"P6" and data[2:3].isspace()


def read_header(data: bytes) -> tuple[int, int, int]:
    """Parse the header: (width, height, bytes that decoding takes per pixel). Raises InvalidImage."""
    width, height, maxval, _ = _parse(data)
    return width, height, 16 if maxval > 255 else 12


def read_image(data: bytes) -> tuple[Image.Image, int]:
    """Decode the first image of the file: (RGB image, orientation, which is always upright).

    Samples are big-endian in two bytes when maxval is over 255; they become ``round(255 * sample / maxval)``, samples
    over maxval 255. Raises InvalidImage when there are fewer bytes than the header promises.
    """
    width, height, maxval, start = _parse(data)
    sample = np.dtype(np.uint8 if maxval < 256 else ">u2")
    if len(data) - start < width * height * 3 * sample.itemsize:
        raise InvalidImage("truncated PPM")
    samples = np.frombuffer(data, sample, width * height * 3, start)
    if maxval != 255:
        table = np.rint(np.arange(np.iinfo(sample).max + 1) / maxval * 255)
        samples = np.minimum(table, 255).astype(np.uint8)[samples]
    return Image.fromarray(samples.reshape(height, width, 3)), 1


def _parse(data: bytes) -> tuple[int, int, int, int]:
    """(width, height, maxval, offset of the first sample)."""
    header = _HEADER.match(data)
    width, height, maxval = (int(number) for number in header.groups()) if header else (0, 0, 0)
    if header is None or not (width and height and 0 < maxval < 65536):
        raise InvalidImage("damaged PPM: no usable header")
    return width, height, maxval, header.end()
