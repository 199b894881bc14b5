"""What is kept of a JPEG file, what is ignored, what is refused."""

from __future__ import annotations

import io
import itertools
import re

import numpy as np
import pytest
from PIL import Image

from jrm_service.errors import InvalidImage
from jrm_service.images.decode import decode
from jrm_service.images.jpeg import MAX_SCANS

from .samples import encode, insert_segment, photo, pixels
from .samples import size as size_of

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
    assert size_of(file) == (37, 23)


def test_fill_bytes_and_junk_between_segments_are_skipped() -> None:
    start = FILE.index(b"\xff\xdb")
    file = FILE[:start] + b"junk\xff\x00\xff\xff" + FILE[start:]
    np.testing.assert_array_equal(pixels(decode(file)), pixels(decode(FILE)))


def test_two_frame_headers_are_damage() -> None:
    """Pillow would believe the last one and libjpeg the first."""
    start = FILE.index(b"\xff\xc0")
    with pytest.raises(InvalidImage, match=r"^damaged JPEG$"):
        decode(FILE[:start] + frame_header(FILE) + FILE[start:])


def test_no_frame_header_is_damage() -> None:
    with pytest.raises(InvalidImage, match=r"^damaged JPEG: no usable frame header$"):
        decode(FILE.replace(frame_header(FILE), b""))


@pytest.mark.parametrize("at", [5, 7], ids=["height", "width"])
def test_a_side_of_zero_is_damage(at: int) -> None:
    start = FILE.index(b"\xff\xc0") + at
    with pytest.raises(InvalidImage, match=r"^damaged JPEG: no usable frame header$"):
        decode(FILE[:start] + bytes(2) + FILE[start + 2 :])


KINDS: dict[str, dict[str, object]] = {
    "baseline": {},
    "progressive": {"progressive": True},
    "no subsampling": {"subsampling": 0},
    "its own codes": {"optimize": True},
    "restarts": {"restart_marker_blocks": 2},
    "a restart behind every unit": {"restart_marker_blocks": 1},
    "progressive with restarts": {"progressive": True, "restart_marker_blocks": 2},
    "low quality": {"quality": 5, "optimize": True},
    "high quality": {"quality": 100},
}
CLOSINGS = {
    "end": b"\xff\xd9",
    "comment, end": b"\xff\xfe\0\4no\xff\xd9",
    "empty comment, end": b"\xff\xfe\0\2\xff\xd9",
    "restart, end": b"\xff\xd0\xff\xd9",
    "all restarts, end": b"".join(bytes([0xFF, 0xD0 + number]) for number in range(8)) * 40 + b"\xff\xd9",
    "restart, comment, end": b"\xff\xd3\xff\xfe\0\2\xff\xd9",
    "fill bytes, end": b"\xff" * 40 + b"\xd9",
}


def next_restart(data: bytes) -> bytes:
    """The restart marker that a decoder expects behind these scan data."""
    last = max((data.rfind(bytes([0xFF, 0xD0 + number])), number) for number in range(8))
    return bytes([0xFF, 0xD0 + ((last[1] + 1) % 8 if last[0] >= 0 else 0)])


def closed(file: bytes, start: int, length: int) -> dict[str, bytes]:
    """The file cut to ``length`` bytes and closed in every way."""
    cut = file[:length].removesuffix(b"\xff")
    expected = next_restart(cut[start:])
    return {name: cut + closing for name, closing in CLOSINGS.items()} | {
        "expected restart, end": cut + expected + b"\xff\xd9",
        "expected restart twice, end": cut + expected + next_restart(expected) + b"\xff\xd9",
        "expected restart, comment, end": cut + expected + b"\xff\xfe\0\2\xff\xd9",
    }


def accepted(file: bytes) -> np.ndarray | None:
    try:
        return pixels(decode(file))
    except InvalidImage:
        return None


def is_whole_but_for_the_last_block(cut: np.ndarray, whole: np.ndarray) -> bool:
    """Whether pixels differ in the last block only, which covers 16 x 16 pixels, if it is of subsampled colour."""
    rows, columns = np.nonzero((cut != whole).any(axis=2))
    last_row, last_column = ((side - 1) // 16 * 16 - 2 for side in whole.shape[:2])  # smoothing reaches further
    return rows.size == 0 or bool(rows.min() >= last_row and columns.min() >= last_column)


def test_a_cut_scan_that_was_closed_again_is_truncated() -> None:
    """libjpeg would make up the rest, in gray. A few last bits may happen to be what it makes up."""
    for kind, options in KINDS.items():
        for mode in ("RGB", "L", "CMYK"):
            file = encode(photo().convert(mode), "JPEG", **options)
            whole = pixels(decode(file))
            start, end = file.rindex(b"\xff\xda") + 14, len(file) - 2
            for length in range(start, end):
                for closing, damaged in closed(file, start, length).items():
                    cut = accepted(damaged)
                    if cut is not None and not np.array_equal(cut, whole):
                        case = f"{kind}, {mode}, {length} of {end}, {closing}"
                        assert length >= end - 12, case
                        assert is_whole_but_for_the_last_block(cut, whole), case


def test_a_large_file_that_was_cut_and_closed_lacks_its_last_block_at_most() -> None:
    """What libjpeg looks ahead at may stand in for the end of that block."""
    for kind, options in KINDS.items():
        for mode in ("RGB", "L"):
            file = encode(photo(300, 260).convert(mode), "JPEG", **options)
            whole = pixels(decode(file))
            start, end = file.rindex(b"\xff\xda") + 14, len(file) - 2
            for length in [*range(start, end, 9999), *range(end - 30, end)]:
                for closing, damaged in closed(file, start, length).items():
                    cut = accepted(damaged)
                    case = f"{kind}, {mode}, {length} of {end}, {closing}"
                    assert cut is None or is_whole_but_for_the_last_block(cut, whole), case


def test_data_missing_in_any_scan_of_a_progressive_file_is_seen() -> None:
    """But for its end: what libjpeg looks ahead at may stand in for the last few blocks, or for a run of empty ones."""
    for size, most_unseen, step in (((37, 23), 10, 1), ((300, 260), 32, 499)):
        for options in ({}, {"restart_marker_blocks": 2}):
            file = encode(photo(*size), "JPEG", progressive=True, **options)
            whole = pixels(decode(file))
            for scan in re.finditer(rb"\xff\xda", file):
                start = scan.end() + int.from_bytes(file[scan.end() : scan.end() + 2])
                end = re.compile(rb"\xff[^\x00\xd0-\xd7]").search(file, start).start()
                for length in {*range(start, end, step), *range(max(start, end - 50), end)}:
                    cut = accepted(file[:length].removesuffix(b"\xff") + file[end:])
                    case = f"{size}, {options}, scan at {scan.start()}, {length} of {end}"
                    assert cut is None or length >= end - most_unseen or np.array_equal(cut, whole), case


def test_a_large_file_that_ends_early_is_truncated() -> None:
    """Of any kind, wherever it was cut, between two scans too."""
    for kind, options in KINDS.items():
        file = encode(photo(300, 260), "JPEG", **options)
        scans = [found.start() for found in re.finditer(rb"\xff\xda", file)]
        for length in [*range(3, len(file) - 1, len(file) // 99), *scans]:
            with pytest.raises(InvalidImage, match=r"^truncated JPEG"):
                pytest.fail(f"{kind}, {length} of {len(file)}: {decode(file[:length]).size}")


def test_restarts_have_to_be_in_order_and_complete() -> None:
    file = encode(photo(100, 90), "JPEG", restart_marker_blocks=3)
    places = [found.start() for found in re.finditer(rb"\xff[\xd0-\xd7]", file)]
    assert len(places) > 9
    for place, following in itertools.pairwise(places):
        without_interval = file[:place] + file[following:]
        without_marker = file[:place] + file[place + 2 :]
        repeated = file[:following] + file[place:]
        for damaged in (without_interval, without_marker, repeated):
            assert accepted(damaged) is None, place


def test_what_follows_a_whole_scan_is_ignored() -> None:
    for size in ((37, 23), (300, 260)):
        for kind, options in KINDS.items():
            file = encode(photo(*size), "JPEG", **options)
            harmless = {
                "fill bytes": b"\xff\xff\xff\xd9",
                "bytes": bytes(100) + b"\xff\xd9",
                "a comment": b"\xff\xfe\0\4no\xff\xd9",
                "another file": b"\xff\xd9" + encode(photo(50, 60), "JPEG"),
                "a restart": next_restart(file[file.rindex(b"\xff\xda") + 14 :]) + b"\xff\xd9",
            }
            for name, closing in harmless.items():
                image = pixels(decode(file[:-2] + closing))
                np.testing.assert_array_equal(image, pixels(decode(file)), err_msg=f"{kind}, {size}, {name}")


def test_units_are_counted_for_every_subsampling_and_size() -> None:
    """One too few or too many, and a whole file would be refused."""
    for width, height in itertools.product((1, 7, 8, 9, 15, 16, 17, 33), repeat=2):
        for subsampling in (0, 1, 2):
            for options in ({}, {"progressive": True}):
                for mode in ("RGB", "L"):
                    for interval in (1, 2, 3):
                        file = encode(
                            photo(width, height).convert(mode),
                            "JPEG",
                            subsampling=subsampling,
                            restart_marker_blocks=interval,
                            **options,
                        )
                        case = (width, height, subsampling, options, mode, interval)
                        assert accepted(file) is not None, case


def test_libjpegs_own_code_tables_serve_a_file_without_any() -> None:
    """As in frames of motion JPEG."""
    for size in ((37, 23), (300, 260)):
        file = encode(photo(*size), "JPEG")
        while (start := file.find(b"\xff\xc4")) >= 0:
            file = file[:start] + file[start + 2 + int.from_bytes(file[start + 2 : start + 4]) :]
        np.testing.assert_array_equal(pixels(decode(file)), pixels(Image.open(io.BytesIO(file))))


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
    with pytest.raises(InvalidImage, match=r"^truncated JPEG: image data is missing$"):
        decode(file[: file.rindex(b"\xff\xda")] + b"\xff\xd9")  # a component is missing
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
    for size in ((50, 40), (300, 260)):
        for options in KINDS.values():
            file = encode(Image.new("RGB", size, (level, level, level)), "JPEG", **options)
            np.testing.assert_array_equal(pixels(decode(file)), pixels(Image.open(io.BytesIO(file))))


def test_an_image_that_ends_before_its_scan_is_damage() -> None:
    start = FILE.index(b"\xff\xda")
    with pytest.raises(InvalidImage, match=r"^damaged JPEG: no image data$"):
        decode(FILE[:start] + b"\xff\xd9" + FILE[start:])


def test_twelve_bit_samples_are_refused() -> None:
    start = FILE.index(b"\xff\xc0") + 4
    with pytest.raises(InvalidImage, match=r"^damaged JPEG$"):
        decode(FILE[:start] + b"\x0c" + FILE[start + 1 :])


def test_components_may_share_a_number() -> None:
    """Against the standard, but such files exist, and libjpeg reads them."""
    frame, scan = FILE.index(b"\xff\xc0") + 10, FILE.index(b"\xff\xda") + 5
    file = bytearray(FILE)
    for number in range(3):
        file[frame + 3 * number] = file[scan + 2 * number] = 1
    np.testing.assert_array_equal(pixels(decode(bytes(file))), pixels(Image.open(io.BytesIO(file))))


def test_codings_in_which_a_cut_cannot_be_told_are_refused() -> None:
    """Arithmetic coding, for one, whose encoders drop trailing zeros."""
    for marker in (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF):
        with pytest.raises(
            InvalidImage, match=r"^unsupported JPEG: neither baseline nor progressive with Huffman codes$"
        ):
            size_of(FILE.replace(b"\xff\xc0", bytes([0xFF, marker])))


def test_endless_segments_are_refused() -> None:
    file = FILE[:2] + b"\xff\xfe\0\x02" * 10_000 + FILE[2:]
    with pytest.raises(InvalidImage, match=r"^damaged JPEG: too many segments$"):
        decode(file)


def test_endless_scans_are_refused() -> None:
    file = encode(photo(), "JPEG", progressive=True)
    last = file.rindex(b"\xff\xda")
    with pytest.raises(InvalidImage, match=r"^unsupported JPEG: more than 128 scans$"):
        decode(file[:last] + file[last:-2] * MAX_SCANS + file[-2:])
