"""Untrusted bytes -> RGB. Nothing of an image is decoded before its header has been accepted.

Each format has a module that refuses damaged files and leaves the pixels to pillow; this module has what they share:
limits, colour rules and the two errors. Colour follows transformers' ``load_image``, as training code uses it: first
frame of an animation, EXIF orientation applied, alpha dropped (not composited), palette expanded, gray replicated, CMYK
converted. The one exception is 16-bit gray, which ``load_image`` clips to white: it is cut to its high byte, like every
other 16-bit PNG. ``docs/images.md`` has the table.

No global state of pillow is read or changed and no warning is raised: safe from any number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

from jrm_service.errors import CandidateError, ImageTooLarge, InvalidImage

from . import jpeg, png, ppm, webp
from .orientation import TRANSPOSE
from .preprocess import MAX_ASPECT_RATIO

MAX_PIXELS = 32_000_000


class _Format(Protocol):
    """The functions of a format's module. ``matches`` looks at the first bytes; the others raise InvalidImage."""

    def matches(self, data: bytes) -> bool: ...
    def read_header(self, data: bytes) -> tuple[int, int, int]: ...
    def read_image(self, data: bytes) -> tuple[Image.Image, int]: ...


_FORMATS: dict[str, _Format] = {"PNG": png, "JPEG": jpeg, "WebP": webp, "PPM": ppm}


@dataclass(frozen=True, slots=True)
class Header:
    """Format, width and height in pixels as stored (EXIF orientation not applied), and the memory that decoding takes.

    ``bytes_per_pixel`` bounds all pixel buffers that decoding holds at one moment: pillow takes 4 bytes for a pixel of
    any mode, conversion to RGB and rotation each add a copy, and every format has buffers of its own. It leaves out
    only the prefix codes of a lossless WebP, see ``webp.code_bytes``.
    """

    format: str
    width: int
    height: int
    bytes_per_pixel: int

    @property
    def decoded_bytes(self) -> int:
        """Bytes of the pixel buffers at their peak, copies of the file not counted."""
        return self.width * self.height * self.bytes_per_pixel


def read_header(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Header:
    """Return the header in the first bytes, without decoding a pixel: fast enough for an event loop.

    Raises what ``decode`` raises; an image that passes here may still turn out to be damaged.
    """
    if not data:
        raise InvalidImage("empty image")
    name = next((name for name, module in _FORMATS.items() if module.matches(data)), None)
    if name is None:
        raise InvalidImage("not a PNG, JPEG, WebP or PPM image")
    header = Header(name, *_FORMATS[name].read_header(data))
    width, height = header.width, header.height
    if width * height > max_pixels:
        raise ImageTooLarge(f"{width} x {height} pixels, over the limit of {max_pixels / 1e6:g} Mpixel")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ImageTooLarge(f"{width} x {height} pixels, an aspect ratio over the limit of {MAX_ASPECT_RATIO}")
    return header


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a PNG, JPEG, WebP or binary PPM (P6) file to an upright 8-bit RGB image of its full size.

    Raises ImageTooLarge, from the header alone, for more than ``max_pixels`` pixels or an aspect ratio over 200, and
    InvalidImage for everything else that is wrong with the bytes: another format, damaged, or truncated (an image is
    whole or it is an error; missing pixels are never filled in). Raises nothing else.
    """
    return decode_behind(read_header(data, max_pixels=max_pixels), data)


def decode_behind(header: Header, data: bytes) -> Image.Image:
    """Like ``decode``, for callers that have read the header already to know how much memory it takes."""
    try:
        image, orientation = _FORMATS[header.format].read_image(data)
        if image.size != (header.width, header.height):
            raise InvalidImage(f"damaged {header.format}: header and image data disagree")
        rgb = _to_rgb(image)
        return rgb.transpose(TRANSPOSE[orientation]) if orientation in TRANSPOSE else rgb
    except CandidateError:
        raise
    except MemoryError:
        raise InvalidImage(f"{header.format} that needs more memory than there is") from None
    except Exception:
        # On hostile bytes pillow raises nearly any exception, with messages about its internals.
        raise InvalidImage(f"damaged {header.format}") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    """A plain 8-bit RGB image that shares no memory with its decoder."""
    if type(image) is Image.Image and image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # 16-bit gray; pillow would clip it to 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")
