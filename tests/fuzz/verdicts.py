"""What the decoder says about a file, with everything that must hold whatever the file is."""

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from jrm_service.errors import ImageTooLarge, InvalidImage
from jrm_service.images import webp
from jrm_service.images.decode import decode, read_header

T = TypeVar("T")

MAX_PIXELS = 1_000_000
_ROOM = 24 * 2**20  # what an allocator keeps for itself, and pillow's buffers of fixed size
_COPIES = 6  # of the file itself: sifted, joined, handed to pillow


@dataclass(frozen=True)
class Verdict:
    """The pixels, uint8 [H, W, 3], or an error's code and message."""

    pixels: np.ndarray | None
    error: tuple[str, str] | None

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Verdict)
        return self.error == other.error and np.array_equal(self.pixels, other.pixels)


def verdict(file: bytes) -> Verdict:
    """Decode a file twice. Fails unless both end in the same image of the size in its header, or the same typed error,
    without a warning and within the memory that was announced."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        first, growth = peak_growth(lambda: _decoded(file))
        again = _decoded(file)
    assert first == again, "the same file, another verdict"
    assert not warned, [str(one.message) for one in warned]
    announced = _announced(file)
    assert growth < announced + _COPIES * len(file) + _ROOM, f"{growth:,} bytes for {announced:,} announced"
    if first.pixels is not None:
        assert first.pixels.dtype == np.uint8
        header = read_header(file, max_pixels=MAX_PIXELS)
        assert sorted(first.pixels.shape[:2]) == sorted((header.width, header.height))
        assert first.pixels.nbytes < header.decoded_bytes
    return first


def _decoded(file: bytes) -> Verdict:
    """Nothing else than the two errors is caught: anything else fails the test that asks."""
    try:
        image = decode(file, max_pixels=MAX_PIXELS)
    except (InvalidImage, ImageTooLarge) as error:
        return Verdict(None, (error.code, short_message(error, 120)))
    assert image.mode == "RGB"
    return Verdict(np.asarray(image), None)


def short_message(error: Exception, characters: int) -> str:
    """The message of an error, which tells nothing of the libraries below and echoes little."""
    assert error.__cause__ is None
    assert 0 < len(str(error)) < characters
    return str(error)


def _announced(file: bytes) -> int:
    try:
        needed = read_header(file, max_pixels=MAX_PIXELS).decoded_bytes
        return needed + (webp.code_bytes(file) if webp.matches(file) else 0)
    except (InvalidImage, ImageTooLarge):
        return 0  # refused by its header: nothing was decoded


def peak_growth(work: Callable[[], T]) -> tuple[T, int]:
    """What ``work`` returns, and how many bytes the memory of this process rose during it."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew at what is resident now
    before = _peak()
    result = work()
    return result, _peak() - before


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found
    return 1024 * int(found[1])
