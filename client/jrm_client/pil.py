"""PIL images -> pixels that PNG or PPM holds exactly, without any metadata.

Only pixels and the EXIF orientation count: a stale ``transparency``, colour profile or text is dropped, as the server
drops it too. A mode whose scale is unknown is refused: a reward for a black picture looks like any other reward.
"""

from __future__ import annotations

import os
import threading

import numpy as np
from PIL import Image

# Modes that PNG holds exactly; the server converts them to RGB as it does a file.
_UNCHANGED = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})
_CONVERTED = {"PA": "RGBA", "La": "LA", "RGBa": "RGBA", "RGBX": "RGB", "CMYK": "RGB", "YCbCr": "RGB", "HSV": "RGB"}

_SIXTEEN_BITS = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})
_TWELVE_BITS = 4095  # up to here, 8 bits or a sensor's 10 or 12 are likelier than a dark 16-bit image
_REMEDY = "pass 8 bits: Image.fromarray((np.asarray(image) / WHITE * 255).astype(np.uint8)), WHITE being 255, 65535, …"

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# A lazily opened PIL image and its EXIF block must not be loaded by two threads at once, and threads easily share a
# source. For an image that is loaded already, as most are, the lock is held for microseconds.
_loading = threading.Lock()


def _unlock_after_fork() -> None:
    global _loading
    _loading = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock_after_fork)


def prepare(image: Image.Image, name: str) -> Image.Image:
    """Return ``image`` upright, in a mode that PNG holds exactly.

    Its metadata may still be there, and the result may be ``image`` itself. Raises ValueError for an image that is
    empty, closed or damaged, or whose scale is unknown, and TypeError for a mode without a defined conversion; the
    messages begin with ``name``.
    """
    if not (image.width and image.height):
        raise ValueError(f"{name}: the image is empty ({image.width}x{image.height})")
    with _loading:
        try:
            image.load()
        except MemoryError:
            raise
        except Exception as error:  # plugins raise whatever a damaged, closed or deleted file provokes
            raise ValueError(f"{name}: pillow cannot load this image: {error}") from error
        rotation = _rotation(image)
    _check_mode(image, name)
    plain = _converted(image)
    return plain if rotation is None else plain.transpose(rotation)


def upright(image: Image.Image) -> Image.Image:
    """Return a loaded image turned as its EXIF orientation says."""
    rotation = _rotation(image)
    return image if rotation is None else image.transpose(rotation)


def without_metadata(image: Image.Image) -> Image.Image:
    """Return a copy that has pixels and, in mode P, a palette, and nothing else that pillow would write to a file."""
    bare = image.copy()
    bare.info = {}
    return bare


def _rotation(image: Image.Image) -> Image.Transpose | None:
    try:
        return _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # whatever damaged metadata provokes; it says nothing about the pixels
        return None


def _check_mode(image: Image.Image, name: str) -> None:
    mode = image.mode
    if mode in _UNCHANGED - _SIXTEEN_BITS or mode in _CONVERTED:
        return
    if mode == "I" or mode in _SIXTEEN_BITS:
        _check_scale(image, name)
        return
    raise TypeError(f"{name}: PIL mode {mode} has no defined conversion to 8 bits; convert it to RGB")


def _check_scale(image: Image.Image, name: str) -> None:
    """Refuse integers that do not look like 16 bits. Black is black on every scale."""
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low == high == 0:
        return
    if low < 0 or high > 65535:
        raise ValueError(f"{name}: PIL mode {image.mode} with values outside 0..65535; {_REMEDY}")
    if high <= _TWELVE_BITS:
        raise ValueError(
            f"{name}: PIL mode {image.mode} is read as 16 bits, and values {low}..{high} are almost black; {_REMEDY}"
        )


def _converted(image: Image.Image) -> Image.Image:
    if image.mode in _CONVERTED:
        # pillow translates a transparent colour along with the pixels, and fails where it cannot.
        return without_metadata(image).convert(_CONVERTED[image.mode])
    if image.mode in _UNCHANGED:
        return image
    return Image.fromarray(np.asarray(image).astype(np.uint16))  # 32 bits, or the other byte order
