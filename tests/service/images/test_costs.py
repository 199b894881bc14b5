"""What hostile metadata and prefix codes cost: in proportion to the file, and no more memory than announced."""

from __future__ import annotations

import numpy as np

from fuzz.corpus import CORPUS
from fuzz.verdicts import peak_growth
from jrm_service.images.decode import decode, decoded_bytes
from jrm_service.images.orientation import UPRIGHT, read_orientation

from .samples import chunk, encode, exif, insert_chunks, insert_segment, photo, pixels

MB = 10**6
CODES = (CORPUS / "images/accepted/prefix-codes-for-every-block.webp").read_bytes()


def test_a_prefix_that_is_repeated_ten_million_times_is_not_taken_off_one_by_one() -> None:
    """That would copy 300 terabytes."""
    assert read_orientation(b"Exif\0\0" * 10_000_000 + exif(6), None) == UPRIGHT


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
    _, growth = peak_growth(lambda: decode(insert_chunks(encode(photo(), "PNG"), text)))
    assert growth < 100 * MB


def test_prefix_codes_of_a_webp_are_announced() -> None:
    """74 kB that bring 16,384 sets of codes: libwebp needs 93 MB, though the pixels are 1 MB."""
    _, growth = peak_growth(lambda: decode(CODES))
    assert 50 * MB < growth < decoded_bytes(CODES)


def test_a_lossy_webp_has_no_prefix_codes() -> None:
    assert decoded_bytes(encode(photo(512, 512), "WEBP", quality=95)) < 512 * 512 * 30


def test_a_length_that_lies_announces_no_more_than_the_file_could_hold() -> None:
    file = bytearray(encode(photo(512, 512), "WEBP", lossless=True))
    file[16:20] = b"\xff\xff\xff\xff"
    assert decoded_bytes(bytes(file)) < 300 * MB
