"""RGB -> what the model sees: Qwen's resize, normalization and patch order, with only pillow and numpy.

Grid and values equal those of transformers' ``Qwen2VLImageProcessorPil`` (the image processor of Qwen3-VL on its pillow
backend) bit for bit; tests compare the two.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from jrm_service.errors import ImageTooLarge

MAX_ASPECT_RATIO = 200
DIGEST_BYTES = 16

Resample = Literal["bicubic", "bilinear", "lanczos"]
_RESAMPLING: dict[Resample, Image.Resampling] = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSpec:
    """How images are resized, normalized and cut into patches. Every field affects scores.

    ``min_pixels`` and ``max_pixels`` bound the area after resizing, ``patch_size`` is in pixels, ``merge_size`` in
    patches, ``temporal_patch_size`` in frames (a still image is repeated), ``mean`` and ``std`` are per RGB channel on
    a scale of 0 to 1. Raises ValueError, naming the field, for values that no image could be preprocessed with.
    """

    min_pixels: int
    max_pixels: int
    resample: Resample = "bicubic"
    patch_size: int = 16
    merge_size: int = 2
    temporal_patch_size: int = 2
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        for name in ("min_pixels", "max_pixels", "patch_size", "merge_size", "temporal_patch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, must be at least 1")
        if self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels is {self.min_pixels}, over max_pixels, {self.max_pixels}")
        if self.resample not in _RESAMPLING:
            raise ValueError(f"resample is {self.resample!r}, must be one of {', '.join(get_args(Resample))}")
        if len(self.mean) != 3 or not all(math.isfinite(value) for value in self.mean):
            raise ValueError(f"mean is {self.mean}, must be three finite numbers")
        if len(self.std) != 3 or not all(math.isfinite(value) and value > 0 for value in self.std):
            raise ValueError(f"std is {self.std}, must be three positive numbers")

    @property
    def factor(self) -> int:
        """Side in pixels of the square that becomes one language-model token."""
        return self.patch_size * self.merge_size


def smart_resize(height: int, width: int, spec: ImageSpec) -> tuple[int, int]:
    """Return (height, width) in pixels after resizing: both multiples of ``spec.factor``, the aspect ratio about kept.

    Rounds to the nearest multiples, then shrinks until the area is at most ``max_pixels`` or grows until it is at least
    ``min_pixels``. Neither side gets shorter than ``factor``, so a thin image may end up over ``max_pixels``, as may
    any when ``min_pixels`` is close to it. Raises ImageTooLarge for an aspect ratio over 200.
    """
    if max(height, width) / min(height, width) > MAX_ASPECT_RATIO:
        raise ImageTooLarge(f"{width} x {height} pixels, an aspect ratio over the limit of {MAX_ASPECT_RATIO}")
    factor = spec.factor
    # The order of multiplications and divisions is transformers': another one rounds differently.
    rows, columns = round(height / factor), round(width / factor)
    area = rows * columns * factor * factor
    if area > spec.max_pixels:
        shrink = math.sqrt(height * width / spec.max_pixels)
        rows, columns = (max(1, math.floor(side / shrink / factor)) for side in (height, width))
    elif area < spec.min_pixels:
        grow = math.sqrt(spec.min_pixels / (height * width))
        rows, columns = (math.ceil(side * grow / factor) for side in (height, width))
    return rows * factor, columns * factor


def resize(rgb: Image.Image, spec: ImageSpec) -> npt.NDArray[np.uint8]:
    """Resize an RGB image to the size that the model sees: uint8 [H, W, 3], C-contiguous, its own memory.

    Raises ImageTooLarge for an aspect ratio over 200 and ValueError for an image that is not RGB.
    """
    if rgb.mode != "RGB":
        raise ValueError(f"image is {rgb.mode}, must be RGB")
    height, width = smart_resize(rgb.height, rgb.width, spec)
    return np.array(rgb.resize((width, height), _RESAMPLING[spec.resample]))


def digest(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Return 16 bytes that identify these pixels and their shape, equal on every machine."""
    hashed = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=DIGEST_BYTES)
    hashed.update(np.ascontiguousarray(pixels).data)
    return hashed.digest()


class _Shaped(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...


def grid(pixels: _Shaped, spec: ImageSpec) -> tuple[int, int, int]:
    """Return the patch grid (time, rows, columns) of uint8 [H, W, 3]: the model's ``image_grid_thw`` row.

    Raises ValueError when H or W is not a positive multiple of ``spec.factor``.
    """
    height, width, channels = pixels.shape
    if channels != 3 or not height or not width or height % spec.factor or width % spec.factor:
        raise ValueError(f"pixels are {pixels.shape}, must be [H, W, 3] with H and W multiples of {spec.factor}")
    return 1, height // spec.patch_size, width // spec.patch_size


def tokens(pixels: npt.NDArray[np.uint8], spec: ImageSpec) -> int:
    """Return the number of language-model tokens that these pixels become. Raises what ``grid`` raises."""
    time, rows, columns = grid(pixels, spec)
    return time * rows * columns // spec.merge_size**2


def patches(pixels: npt.NDArray[np.uint8], spec: ImageSpec) -> npt.NDArray[np.float32]:
    """Return the normalized patches of uint8 [H, W, 3]: float32 [rows * columns, 3 * temporal * patch * patch].

    Patches of one merge block are neighbours: the order is block row, block column, row and column within the block; a
    patch is channel, time, y, x. These are the model's ``pixel_values``. Raises what ``grid`` raises.
    """
    _, rows, columns = grid(pixels, spec)
    patch, merge = spec.patch_size, spec.merge_size
    blocks = pixels.reshape(rows // merge, merge, patch, columns // merge, merge, patch, 3)
    # Reordered while a sample is still one byte; the table then turns it into four.
    ordered = blocks.transpose(6, 0, 3, 1, 4, 2, 5).reshape(3, rows * columns, patch * patch)
    out = np.empty((rows * columns, 3, spec.temporal_patch_size, patch * patch), np.float32)
    for channel, table in enumerate(levels(spec.mean, spec.std)):
        out[:, channel] = table[ordered[channel]][:, None]
    return out.reshape(rows * columns, -1)


@lru_cache(maxsize=8)
def levels(mean: tuple[float, float, float], std: tuple[float, float, float]) -> npt.NDArray[np.float32]:
    """Return the normalized value of each 8-bit level of each channel: float32 [3, 256], read-only.

    As transformers computes it: scaled in float64, cast, then normalized in float32.
    """
    scaled = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
    table = (scaled[None] - np.array(mean, np.float32)[:, None]) / np.array(std, np.float32)[:, None]
    table.flags.writeable = False
    return table
