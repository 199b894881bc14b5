"""What the first bytes of an image file promise, before any pixel is decoded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Header:
    """Width and height in pixels as stored (EXIF orientation not applied), and the price of decoding.

    ``bytes_per_pixel`` bounds all pixel buffers that decoding holds at one moment: pillow keeps 4 bytes for a pixel of
    whatever mode, conversion to RGB and rotation each add a copy, and every format has buffers of its own.
    ``further_bytes`` bounds what a decoder holds that does not follow from the number of pixels.
    """

    width: int
    height: int
    bytes_per_pixel: int
    further_bytes: int = 0
