"""What the first bytes of an image file promise, before any pixel is decoded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Header:
    """Width and height in pixels as stored (EXIF orientation not applied), and the memory that decoding takes.

    ``bytes_per_pixel`` bounds all pixel buffers that decoding holds at one moment: pillow keeps 4 bytes for a pixel of
    whatever mode, conversion to RGB and rotation each add a copy, and every format has buffers of its own. The one
    thing that it leaves out is the prefix codes of a lossless WebP, see ``webp.code_bytes``.
    """

    width: int
    height: int
    bytes_per_pixel: int

    @property
    def decoded_bytes(self) -> int:
        """Bytes of the pixel buffers at their peak, copies of the file not counted."""
        return self.width * self.height * self.bytes_per_pixel
