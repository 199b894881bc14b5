"""Every kind of image that callers have -> bytes on the wire, without loss.

========================================  ==========================================================================
path (``str``, ``os.PathLike``), bytes    the file as it is; the server decodes it
``PIL.Image`` RGB                         PPM (P6)
``PIL.Image``, other modes                PNG, which holds 1, L, LA, P, RGBA and 16-bit gray exactly; the server
                                          converts it to RGB as it does a file. Modes that PNG lacks (CMYK, YCbCr, …)
                                          go through pillow's ``convert``; mode I is 16-bit gray, F is refused
uint8 array [H, W, 3]                     PPM (P6)
float array or torch tensor [3, H, W]     values in [0, 1] become ``(x * 255).round().clip(0, 255)``, then PPM (P6)
========================================  ==========================================================================

An EXIF orientation is applied to a PIL image, as the server does for a file, so that a photo scores the same either
way; other metadata is dropped (``pil``). Half-precision tensors are widened to float32 first. A float image may
overshoot [0, 1] a little, as decoded latents do, and is clipped; values outside [-0.25, 1.25] mean another scale
(0..255, or -1..1) and are refused. So are 16-bit gray with no value over 4095, a side of 3 that could be the
channels, NaN and infinity: a reward for the wrong picture looks like any other reward.

PPM costs one copy, and PNG a compression that only pays off on a slow network (``image_format="png"``).
Tensors are recognised by their methods: torch is never imported.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from . import pil


class Tensor(Protocol):
    """What the client uses of ``torch.Tensor``; any device, any dtype, gradients or not."""

    @property
    def shape(self) -> Any:
        """[3, H, W] for floats in [0, 1], [H, W, 3] for uint8."""

    def detach(self) -> Any:
        """Leave the autograd graph."""


ImageInput: TypeAlias = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | npt.NDArray[Any] | Tensor
)
ImageFormat: TypeAlias = Literal["ppm", "png"]

LOWEST, HIGHEST = -0.25, 1.25  # floats beyond are on another scale than [0, 1]
PPM_MAX_BYTES = 24 * 2**20  # 8 megapixels: above, PNG keeps one image from filling a request
_MAX_PATH = 4096
_HEADERS = 2048  # bytes: more than the headers, and the palette, of a PPM or PNG


def encode(image: ImageInput, name: str, image_format: ImageFormat = "ppm") -> bytes:
    """Return the bytes that represent ``image`` on the wire; PNG or PPM unless they were bytes or a file already.

    ``name`` is what error messages call the image (``edits[3]``). Raises TypeError for a kind or dtype that is not an
    image, ValueError for a wrong shape or scale, NaN or infinity, and OSError for a file that cannot be read.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, str | os.PathLike):
        return _read(os.fsdecode(image), name)
    if isinstance(image, Image.Image):
        return _encode_pil(image, name, image_format)
    _check_kind(image, name)
    array = image if isinstance(image, np.ndarray) else _tensor_to_array(image, name)
    return _encode_pixels(_to_uint8(array, name), image_format)


def size_bound(image: ImageInput, name: str, image_format: ImageFormat = "ppm") -> int:
    """Return the bytes that ``encode`` will give, or a little more, without encoding anything.

    Raises TypeError for a kind that is not an image and OSError for a file that cannot be read.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        return memoryview(image).nbytes
    if isinstance(image, str | os.PathLike):
        return _file_size(os.fsdecode(image), name)
    if isinstance(image, Image.Image):
        samples = len(image.getbands()) * image.width * image.height
        return (2 * samples if image.mode.startswith("I") else samples) + _HEADERS
    _check_kind(image, name)
    return math.prod(getattr(image, "shape", ())) + _HEADERS


def _check_kind(image: object, name: str) -> None:
    if not (isinstance(image, np.ndarray) or all(hasattr(image, method) for method in ("detach", "cpu", "numpy"))):
        raise TypeError(
            f"{name}: {type(image).__name__} is not an image; "
            "expected a path, bytes, a PIL image, a uint8 HWC array, or a float CHW array or tensor"
        )


def decode(image: ImageInput, name: str) -> Image.Image:
    """Return ``image`` as the model sees it before it is resized: upright, 8-bit RGB, alpha dropped.

    Raises what ``encode`` raises, and ValueError for bytes that are not a whole PNG, JPEG, WebP or PPM image.
    """
    data = encode(image, name)
    try:
        picture = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP", "PPM"))
        picture.load()
    except MemoryError:
        raise
    except Exception as error:  # pillow's plugins raise whatever a damaged file provokes
        raise ValueError(f"{name}: not a PNG, JPEG, WebP or PPM image, or a damaged one") from error
    upright = pil.upright(picture)
    if upright.mode.startswith("I"):  # 16-bit gray, which pillow would clip to white
        upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    # Transparency is dropped like an alpha channel; pillow would warn about it.
    return pil.without_metadata(upright).convert("RGB")


def _read(path: str, name: str) -> bytes:
    with _named(path, name):
        return Path(path).read_bytes()


def _file_size(path: str, name: str) -> int:
    with _named(path, name):
        return Path(path).stat().st_size


@contextlib.contextmanager
def _named(path: str, name: str) -> Iterator[None]:
    """Refuse strings that are not paths, and name the image in errors about its file."""
    if len(path) > _MAX_PATH or path.startswith(("http://", "https://", "data:")):
        raise ValueError(
            f"{name}: this string is not a path; URLs and base64 are not read, pass the bytes of the file instead"
        )
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{name}: {error.strerror}", path) from error
    except ValueError as error:  # a null character, or a surrogate that the file system cannot encode
        raise ValueError(f"{name}: not a path: {error}") from None


def _encode_pil(image: Image.Image, name: str, image_format: ImageFormat) -> bytes:
    prepared = pil.prepare(image, name)
    if prepared.mode == "RGB" and _fits_ppm(prepared.size, image_format):
        return _ppm(prepared.size, prepared.tobytes())
    try:
        return _png(pil.without_metadata(prepared))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{name}: pillow cannot write this image as PNG: {error}") from error


def _tensor_to_array(tensor: Any, name: str) -> npt.NDArray[Any]:
    try:
        tensor = tensor.detach().cpu()
        if tensor.is_floating_point() and tensor.element_size() < 4:
            tensor = tensor.float()  # numpy has no bfloat16, and x * 255 would be rounded to its 8 bits
        array = tensor.numpy()
    except (TypeError, ValueError, RuntimeError) as error:  # no pixels (meta), or not dense (sparse, quantized)
        raise TypeError(f"{name}: this tensor cannot become an array: {error}") from error
    return np.asarray(array)


def _to_uint8(array: npt.NDArray[Any], name: str) -> npt.NDArray[np.uint8]:
    """[H, W, 3] uint8, contiguous."""
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name}: a masked array; fill it, and pass the plain array")
    if array.dtype == np.uint8:
        if array.ndim != 3 or array.shape[2] != 3:
            raise ValueError(f"{name}: uint8 of shape {array.shape}; expected [H, W, 3]{_hint(array.shape, 'uint8')}")
        _refuse_unclear(array, name)
        return np.ascontiguousarray(array)
    if not np.issubdtype(array.dtype, np.floating):
        raise TypeError(f"{name}: dtype {array.dtype}; expected uint8 [H, W, 3] or floats in [0, 1] as [3, H, W]")
    if array.ndim != 3 or array.shape[0] != 3:
        raise ValueError(f"{name}: floats of shape {array.shape}; expected [3, H, W]{_hint(array.shape, 'float')}")
    _refuse_unclear(array, name)
    if array.dtype.itemsize < 4:
        array = array.astype(np.float32)
    low, high = float(array.min()), float(array.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{name}: the image has NaN or infinite values")
    if low < LOWEST or high > HIGHEST:
        remedy = "; x / 2 + 0.5 of -1..1" if low >= -1.5 and high <= 1.5 else ""
        raise ValueError(
            f"{name}: values from {low:g} to {high:g}; expected floats in [0, 1] (or uint8 in 0..255){remedy}"
        )
    scaled = np.multiply(array, 255)
    np.rint(scaled, out=scaled)
    np.clip(scaled, 0, 255, out=scaled)
    return np.ascontiguousarray(scaled.astype(np.uint8).transpose(1, 2, 0))


def _hint(shape: tuple[int, ...], kind: Literal["uint8", "float"]) -> str:
    if len(shape) == 4:
        return "; this is a batch, pass its images one by one"
    if len(shape) == 2:
        return "; for a grayscale image repeat the channel three times"
    if len(shape) == 3 and kind == "float" and shape[2] == 3:
        return "; this is HWC: transpose it to CHW, or pass uint8"
    if len(shape) == 3 and kind == "uint8" and shape[0] == 3:
        return "; this is CHW: transpose it to HWC, or pass floats in [0, 1]"
    if len(shape) == 3 and 4 in (shape[0], shape[2]):
        return "; drop the alpha channel, or pass a PIL image"
    return ""


def _refuse_unclear(array: npt.NDArray[Any], name: str) -> None:
    if array.size == 0:
        raise ValueError(f"{name}: the image is empty (shape {array.shape})")
    if array.shape[0] == array.shape[2] == 3:
        raise ValueError(
            f"{name}: shape {array.shape}: either 3 may be the channels; pass a PIL image, or one with longer sides"
        )


def _encode_pixels(pixels: npt.NDArray[np.uint8], image_format: ImageFormat) -> bytes:
    size = (pixels.shape[1], pixels.shape[0])
    if _fits_ppm(size, image_format):
        return _ppm(size, pixels.data)
    return _png(Image.fromarray(pixels))


def _fits_ppm(size: tuple[int, int], image_format: ImageFormat) -> bool:
    return image_format == "ppm" and 3 * size[0] * size[1] <= PPM_MAX_BYTES


def _ppm(size: tuple[int, int], pixels: bytes | memoryview) -> bytes:
    return b"".join((b"P6\n%d %d\n255\n" % size, pixels))


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
