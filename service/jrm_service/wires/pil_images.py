"""The state of a PIL image in a pickle -> an image file with the same pixels."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

from jrm_service.errors import ImageTooLarge, InvalidImage, InvalidRequest
from jrm_service.images.reader import ImageInput

from .pickle_allowlist import PILState

_ROW_BYTES = {  # mode -> a function from the width to the bytes of a row
    "1": lambda width: (width + 7) // 8,
    "L": lambda width: width,
    "P": lambda width: width,
    "LA": lambda width: 2 * width,
    "RGB": lambda width: 3 * width,
    "RGBA": lambda width: 4 * width,
}


class Pictures:
    """Reads the PIL images of one pickle, whose files take no more bytes than the pixels that were sent."""

    def __init__(self, *, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._pixels: set[int] = set()

    def image_input(self, name: str, picture: Any) -> ImageInput:
        """The image in a field; if it cannot be read, it holds the error of its candidates.

        Raises InvalidRequest if it is not a PIL image, or shares its pixels' object with another: pillow writes each
        image's own, and shared pixels could be turned into any number of files.
        """
        if not isinstance(picture, PILState):
            raise InvalidRequest(f"{name}: must be a PIL image", param=name)
        try:
            data = _checked(picture.state)[-1]
            if id(data) in self._pixels and len(data) > 1:  # CPython has one object for each single byte
                raise InvalidRequest(f"{name}: has its pixels in common with another image", param=name)
            self._pixels.add(id(data))
            return ImageInput.of(name, image_file(picture, max_pixels=self._max_pixels))
        except (InvalidImage, ImageTooLarge) as error:
            return ImageInput.of(name, error)


def image_file(picture: PILState, *, max_pixels: int) -> bytes:
    """A lossless file with these pixels: PPM for RGB, which costs nothing, and PNG for every other mode.

    Size, mode and number of bytes are checked before anything is made of them. Raises ImageTooLarge, InvalidImage.
    """
    mode, (width, height), palette, data = _checked(picture.state)
    if width * height > max_pixels:
        raise ImageTooLarge(f"{width} x {height} pixels, over the limit of {max_pixels / 1e6:g} Mpixel")
    if len(data) != _ROW_BYTES[mode](width) * height:
        raise InvalidImage(f"{len(data)} bytes for {width} x {height} pixels of mode {mode}")
    if mode == "RGB":
        return b"P6\n%d %d\n255\n" % (width, height) + data
    image = Image.frombytes(mode, (width, height), data)
    if mode == "P":
        image.putpalette(palette)
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _checked(state: Any) -> tuple[str, tuple[int, int], list[int], bytes]:
    """Mode, size, palette and pixels. Subclasses of PIL's image append more, which is ignored."""
    if not isinstance(state, list | tuple) or len(state) < 5:
        raise InvalidImage("not the state of a PIL image")
    _, mode, size, palette, data = state[:5]
    if not isinstance(mode, str) or mode not in _ROW_BYTES:
        raise InvalidImage(f"a PIL image of mode {str(mode)[:16]}, must be one of {', '.join(_ROW_BYTES)}")
    if not isinstance(size, list | tuple) or len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
        raise InvalidImage("a PIL image without a size")
    if not isinstance(data, bytes):
        raise InvalidImage("a PIL image without pixels")
    colours = list(palette[:769]) if isinstance(palette, list | tuple) else []
    if mode == "P" and not _is_palette(colours):
        raise InvalidImage("a PIL image of mode P without a palette of RGB")
    return mode, (size[0], size[1]), colours, data


def _is_palette(colours: list[Any]) -> bool:
    triples = 0 < len(colours) <= 768 and len(colours) % 3 == 0
    return triples and all(type(value) is int and 0 <= value <= 255 for value in colours)
