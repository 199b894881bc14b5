"""What hostile metadata and prefix codes cost: in proportion to the file, and no more memory than announced."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fuzz.corpus import CORPUS
from fuzz.verdicts import peak_growth
from jrm_service.images import webp
from jrm_service.images.decode import decode, read_header
from jrm_service.images.orientation import read_orientation

from .samples import chunk, encode, exif, insert_chunks, insert_segment, photo, pixels, png

MB = 10**6
CODES = (CORPUS / "images/accepted/prefix-codes-for-every-block.webp").read_bytes()


@pytest.fixture
def nothing_to_reuse() -> None:
    """Memory that earlier tests freed, and that the allocator keeps, would hide what a decoder takes."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def test_a_prefix_that_is_repeated_ten_million_times_is_not_taken_off_one_by_one() -> None:
    """That would copy 300 terabytes."""
    assert read_orientation(b"Exif\0\0" * 10_000_000 + exif(6), None) == 1


def test_exif_in_a_thousand_segments_is_joined_once() -> None:
    """A block may be cut into segments; joining each to those before it would copy 32 GB, and hold two of the sums."""
    jpeg = encode(photo(), "JPEG")
    file = jpeg[:2] + insert_segment(b"\xff\xd8", 0xE1, b"Exif\0\0" + bytes(65_000))[2:] * 1000 + jpeg[2:]
    image, growth = peak_growth(lambda: decode(file))
    np.testing.assert_array_equal(pixels(image), pixels(decode(jpeg)))
    assert growth < 4 * len(file)


def test_text_of_a_png_is_looked_at_up_to_a_limit() -> None:
    """Each of these lines would be an object."""
    text = chunk(b"tEXt", b"Raw profile type exif\0" + b"\n" * 20 * MB)
    file = insert_chunks(encode(photo(), "PNG"), text)
    _, growth = peak_growth(lambda: decode(file))
    assert growth < 4 * len(file)


@pytest.mark.usefixtures("nothing_to_reuse")
def test_prefix_codes_of_a_webp_stay_below_their_bound() -> None:
    """74 kB that bring 16,384 sets of codes: libwebp needs 93 MB, though the pixels are 1 MB."""
    _, growth = peak_growth(lambda: decode(CODES))
    assert 50 * MB < growth < read_header(CODES).decoded_bytes + webp.code_bytes(CODES)


@pytest.mark.usefixtures("nothing_to_reuse")
def test_files_that_could_bring_many_prefix_codes_are_decoded_one_at_a_time() -> None:
    alone = peak_growth(lambda: decode(CODES))[1]
    with ThreadPoolExecutor(4) as pool:
        together = peak_growth(lambda: list(pool.map(decode, [CODES] * 8)))[1]
    assert together < 2 * alone


def test_a_lossless_webp_announces_what_its_pixels_need() -> None:
    """A budget of 512 MiB has room for many: one must not stall the others."""
    file = encode(photo(1024, 1024), "WEBP", lossless=True)
    announced = read_header(file).decoded_bytes
    assert announced < 32 * MB
    _, growth = peak_growth(lambda: decode(file))
    assert growth < announced + len(file) * 6


def test_an_announcement_holds_for_large_files_of_every_kind() -> None:
    image = photo(3000, 2000)
    files = {
        "JPEG": encode(image, "JPEG", quality=95),
        "progressive JPEG": encode(image, "JPEG", quality=95, progressive=True),
        "progressive CMYK JPEG": encode(image.convert("CMYK"), "JPEG", progressive=True),
        "PNG": encode(image, "PNG", compress_level=1),
        "RGBA PNG": encode(image.convert("RGBA"), "PNG", compress_level=1),
        "interlaced 16-bit PNG": png(3000, 2000, bytes(3000 * 2000 * 8 + 20_000), depth=16, colour_type=6, interlace=1),
        "WebP": encode(image, "WEBP", method=0),
        "lossless WebP": encode(image, "WEBP", lossless=True, quality=0, method=0),
        "PPM": encode(image, "PPM"),
        "16-bit PPM": b"P6 3000 2000 65535\n" + bytes(3000 * 2000 * 6),
    }
    for kind, file in files.items():
        _, growth = peak_growth(lambda file=file: decode(file))
        assert growth < read_header(file).decoded_bytes + 6 * len(file), kind
