"""The segments in front of the scan: what is kept, what is ignored, what is refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from jrm_service.errors import InvalidImage
from jrm_service.images.decode import decode
from jrm_service.images.jpeg import MAX_SCANS

from .samples import encode, insert_segment, photo, pixels, size

FILE = encode(photo(), "JPEG")


def frame_header(file: bytes) -> bytes:
    start = file.index(b"\xff\xc0")
    return file[start : start + 19]


def scan_start(file: bytes) -> int:
    """Offset of the first byte of entropy-coded data."""
    start = file.index(b"\xff\xda")
    return start + 2 + int.from_bytes(file[start + 2 : start + 4])


def test_a_multi_picture_file_is_its_first_picture() -> None:
    other = photo().transpose(Image.Transpose.ROTATE_180)
    file = encode(photo(), "MPO", save_all=True, append_images=[other])
    assert Image.open(io.BytesIO(file)).format == "MPO"
    np.testing.assert_array_equal(pixels(decode(file)), pixels(decode(FILE)))


def test_the_size_is_found_behind_a_long_thumbnail() -> None:
    file = FILE
    for _ in range(40):
        file = insert_segment(file, 0xE1, b"Exif\0\0" + encode(photo(), "JPEG")[:65000])
    assert size(file) == (37, 23)


def test_fill_bytes_and_junk_between_segments_are_skipped() -> None:
    start = FILE.index(b"\xff\xdb")
    file = FILE[:start] + b"junk\xff\x00\xff\xff" + FILE[start:]
    np.testing.assert_array_equal(pixels(decode(file)), pixels(decode(FILE)))


def test_two_frame_headers_are_damage() -> None:
    """Pillow would believe the last one and libjpeg the first."""
    start = FILE.index(b"\xff\xc0")
    with pytest.raises(InvalidImage, match=r"^damaged JPEG: more than one frame header$"):
        decode(FILE[:start] + frame_header(FILE) + FILE[start:])


def test_no_frame_header_is_damage() -> None:
    with pytest.raises(InvalidImage, match=r"^damaged JPEG: no usable frame header$"):
        decode(FILE.replace(frame_header(FILE), b""))


@pytest.mark.parametrize("at", [5, 7], ids=["height", "width"])
def test_a_side_of_zero_is_damage(at: int) -> None:
    start = FILE.index(b"\xff\xc0") + at
    with pytest.raises(InvalidImage, match=r"^damaged JPEG: no usable frame header$"):
        decode(FILE[:start] + bytes(2) + FILE[start + 2 :])


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 100}, {"optimize": True}]
)
def test_a_cut_scan_with_an_end_marker_is_truncated(options: dict[str, object]) -> None:
    """libjpeg would make up the rest, in gray."""
    file = encode(photo(), "JPEG", **options)
    whole = pixels(decode(file))
    for length in range(file.rindex(b"\xff\xda") + 14, len(file) - 2, 7):
        try:
            cut = decode(file[:length].rstrip(b"\xff") + b"\xff\xd9")
        except InvalidImage:
            continue
        np.testing.assert_array_equal(pixels(cut), whole)


def test_a_large_file_that_was_cut_and_closed_lacks_its_last_corner_at_most() -> None:
    """A large sequential image is decoded once: what libjpeg looks ahead for may stand in for its last two blocks."""
    kinds: list[dict[str, object]] = [{}, {"subsampling": 0}, {"quality": 100}, {"restart_marker_blocks": 5}]
    for options in [*kinds, {"progressive": True}]:
        file = encode(photo(300, 260), "JPEG", **options)
        whole = pixels(decode(file)).copy()
        start, end = file.rindex(b"\xff\xda") + 14, len(file) - 2
        for length in [*range(start, end, 997), *range(end - 60, end)]:
            try:
                cut = pixels(decode(file[:length].rstrip(b"\xff") + b"\xff\xd9"))
            except InvalidImage:
                continue
            rows, columns = np.nonzero((cut != whole).any(axis=2))
            assert length > end - 60, (options, length)
            assert rows.size == 0 or (rows.min() >= 240 - 2 and columns.min() >= 288 - 2), (options, length)
            assert rows.size == 0 or "progressive" not in options, length


def test_a_large_file_in_several_scans_decodes() -> None:
    """Sequential, but one scan for each component: gray data thrice makes such a file."""
    gray = encode(photo(300, 260).convert("L"), "JPEG")
    frame, scan = gray.index(b"\xff\xc0"), gray.index(b"\xff\xda")
    size = gray[frame + 4 : frame + 9]
    components = b"".join(bytes([number, 0x11, 0]) for number in (1, 2, 3))
    tables = gray[2:frame] + b"\xff\xc0" + (17).to_bytes(2) + size + b"\3" + components + gray[frame + 13 : scan]
    data = gray[scan + 10 : -2]
    scans = b"".join(b"\xff\xda\0\x08\x01" + bytes([number, 0, 0, 63, 0]) + data for number in (1, 2, 3))
    file = b"\xff\xd8" + tables + scans + b"\xff\xd9"
    np.testing.assert_array_equal(pixels(decode(file)), np.asarray(Image.open(io.BytesIO(file)).convert("RGB")))
    with pytest.raises(InvalidImage, match=r"^truncated JPEG: image data is missing$"):
        decode(file[:-1000] + b"\xff\xd9")
    many = b"\xff\xda\0\x08\x01" + bytes([1, 0, 0, 63, 0]) + data
    with pytest.raises(InvalidImage, match=r"^unsupported JPEG: more than 128 scans$"):
        decode(file[:-2] + many * MAX_SCANS + b"\xff\xd9")


def test_a_frame_taller_than_its_scan_is_truncated() -> None:
    start = FILE.index(b"\xff\xc0") + 5
    file = FILE[:start] + (2300).to_bytes(2) + FILE[start + 2 :]
    with pytest.raises(InvalidImage, match=r"^truncated JPEG: image data is missing$"):
        decode(file)


@pytest.mark.parametrize("level", [0, 127, 128, 129, 255])
def test_a_flat_image_is_complete(level: int) -> None:
    """Mid-gray too, which is what missing data looks like."""
    flat = Image.new("RGB", (50, 40), (level, level, level))
    assert decode(encode(flat, "JPEG")).getextrema() == ((level, level),) * 3


def test_an_image_that_ends_before_its_scan_is_damage() -> None:
    start = FILE.index(b"\xff\xda")
    with pytest.raises(InvalidImage, match=r"^damaged JPEG: no image data$"):
        decode(FILE[:start] + b"\xff\xd9" + FILE[start:])


def test_twelve_bit_samples_are_refused() -> None:
    start = FILE.index(b"\xff\xc0") + 4
    with pytest.raises(InvalidImage, match=r"^damaged JPEG$"):
        decode(FILE[:start] + b"\x0c" + FILE[start + 1 :])


def test_endless_segments_are_refused() -> None:
    file = FILE[:2] + b"\xff\xfe\0\x02" * 10_000 + FILE[2:]
    with pytest.raises(InvalidImage, match=r"^damaged JPEG: too many segments$"):
        decode(file)


def test_endless_scans_are_refused() -> None:
    file = encode(photo(), "JPEG", progressive=True)
    last = file.rindex(b"\xff\xda")
    with pytest.raises(InvalidImage, match=r"^unsupported JPEG: more than 128 scans$"):
        decode(file[:last] + file[last:-2] * MAX_SCANS + file[-2:])
