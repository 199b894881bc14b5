"""Damage that pillow lets through is an error here."""

from __future__ import annotations

import itertools
import struct
import zlib

import numpy as np
import pytest

from jrm_service.errors import InvalidImage
from jrm_service.images.decode import decode

from .samples import SIGNATURE, chunk, encode, exif, insert_chunks, photo, pixels, png

RGB = photo(9, 7)
SCANLINES = b"".join(b"\0" + row.tobytes() for row in np.asarray(RGB))


def test_a_flipped_bit_of_image_data_is_damage() -> None:
    file = bytearray(png(9, 7, SCANLINES))
    file[60] ^= 1
    with pytest.raises(InvalidImage, match=r"^damaged PNG: a checksum does not match$"):
        decode(bytes(file))


@pytest.mark.parametrize("missing", [1, 28, 29, 56, len(SCANLINES)])
def test_too_few_scanlines_are_an_error_and_not_a_black_rest(missing: int) -> None:
    short = png(9, 7, SCANLINES[:-missing])
    with pytest.raises(InvalidImage, match=r"^truncated PNG: image data is missing$"):
        decode(short)


def test_a_stream_without_its_end_is_truncated() -> None:
    idat = chunk(b"IDAT", zlib.compress(SCANLINES)[:-4])
    file = png(9, 7, SCANLINES)[:33] + idat + chunk(b"IEND", b"")
    with pytest.raises(InvalidImage, match=r"^truncated PNG: image data is missing$"):
        decode(file)


def test_corrupt_compression_is_damage() -> None:
    file = png(9, 7, SCANLINES)[:33] + chunk(b"IDAT", b"\x78\x9c" + b"\xff" * 50) + chunk(b"IEND", b"")
    with pytest.raises(InvalidImage, match=r"^damaged PNG: corrupt image data$"):
        decode(file)


def test_surplus_image_data_is_ignored() -> None:
    np.testing.assert_array_equal(pixels(decode(png(9, 7, SCANLINES + bytes(500)))), pixels(RGB))


def test_image_data_may_come_in_many_chunks() -> None:
    stream = zlib.compress(SCANLINES)
    idats = b"".join(chunk(b"IDAT", stream[at : at + 1]) for at in range(len(stream)))
    file = png(9, 7, SCANLINES)[:33] + idats + chunk(b"IEND", b"")
    np.testing.assert_array_equal(pixels(decode(file)), pixels(RGB))


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (5, 1), (1, 5), (8, 8), (9, 7), (33, 19)])
def test_interlaced_files_decode(size: tuple[int, int]) -> None:
    rgb = np.asarray(photo(*size))
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    parts = [rgb[y::dy, x::dx] for x, y, dx, dy in passes]
    scanlines = b"".join(b"\0" + row.tobytes() for part in parts if part.size for row in part)
    np.testing.assert_array_equal(pixels(decode(png(*size, scanlines, interlace=1))), rgb)
    with pytest.raises(InvalidImage, match="image data is missing"):
        decode(png(*size, scanlines[:-1], interlace=1))


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("width", [1, 7, 8, 9])
def test_low_bit_depths_fill_whole_bytes_per_row(depth: int, width: int) -> None:
    row = b"\0" + b"\xff" * -(-width * depth // 8)
    assert pixels(decode(png(width, 2, row * 2, depth=depth, colour_type=0))).min() == 255
    with pytest.raises(InvalidImage, match="image data is missing"):
        decode(png(width, 2, (row * 2)[:-1], depth=depth, colour_type=0))


def test_a_palette_is_required_and_expanded() -> None:
    plte = chunk(b"PLTE", bytes([1, 2, 3, 200, 201, 202]))
    file = png(2, 1, b"\0\0\1", colour_type=3, before=[plte])
    assert pixels(decode(file)).tolist() == [[[1, 2, 3], [200, 201, 202]]]
    with pytest.raises(InvalidImage, match=r"^damaged PNG: no palette$"):
        decode(png(2, 1, b"\0\0\1", colour_type=3))


def test_an_unknown_critical_chunk_is_refused() -> None:
    with pytest.raises(InvalidImage, match=r"^damaged PNG: a critical chunk is unknown or out of place$"):
        decode(insert_chunks(png(9, 7, SCANLINES), chunk(b"NEWS", b"")))


def test_an_unknown_ancillary_chunk_is_ignored() -> None:
    file = insert_chunks(png(9, 7, SCANLINES), chunk(b"prIv", b"anything"), chunk(b"acTL", b"\0"))
    np.testing.assert_array_equal(pixels(decode(file)), pixels(RGB))


@pytest.mark.parametrize(
    "ihdr",
    [
        struct.pack(">IIBBBBB", 0, 7, 8, 2, 0, 0, 0),
        struct.pack(">IIBBBBB", 9, 0, 8, 2, 0, 0, 0),
        struct.pack(">IIBBBBB", 2**31, 1, 8, 2, 0, 0, 0),
        struct.pack(">IIBBBBB", 9, 7, 3, 2, 0, 0, 0),
        struct.pack(">IIBBBBB", 9, 7, 8, 2, 1, 0, 0),
        struct.pack(">IIBBBBB", 9, 7, 8, 2, 0, 1, 0),
        struct.pack(">IIBBBBB", 9, 7, 8, 2, 0, 0, 2),
    ],
)
def test_an_impossible_header_is_damage(ihdr: bytes) -> None:
    with pytest.raises(InvalidImage, match=r"^damaged PNG: impossible image header$"):
        decode(SIGNATURE + chunk(b"IHDR", ihdr) + png(9, 7, SCANLINES)[33:])


def test_the_header_comes_first() -> None:
    with pytest.raises(InvalidImage, match=r"^damaged PNG: no image header$"):
        decode(SIGNATURE + chunk(b"tEXt", b"a\0b") + png(9, 7, SCANLINES)[8:])


def test_endless_chunks_are_refused() -> None:
    file = insert_chunks(png(9, 7, SCANLINES), chunk(b"prIv", b"") * 100_000)
    with pytest.raises(InvalidImage, match=r"^damaged PNG: too many chunks$"):
        decode(file)


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt"])
def test_compressed_text_may_state_the_orientation(kind: bytes) -> None:
    block = exif(6)
    text = zlib.compress(b"\nexif\n%8d\n%b\n" % (len(block), block.hex().encode()))
    body = b"Raw profile type exif\0" + (b"\0" if kind == b"zTXt" else b"\1\0en\0key\0") + text
    assert decode(insert_chunks(encode(RGB, "PNG"), chunk(kind, body))).size == (7, 9)


@pytest.mark.parametrize("text", [b"\nexif\n4\nnot hexadecimal\n", b"", b"\xff"])
def test_an_unreadable_profile_is_ignored(text: bytes) -> None:
    file = insert_chunks(encode(RGB, "PNG"), chunk(b"tEXt", b"Raw profile type exif\0" + text))
    np.testing.assert_array_equal(pixels(decode(file)), pixels(RGB))


def test_sixteen_bits_of_which_eight_are_used_are_refused() -> None:
    """Their high bytes are all 0: the picture would be black."""
    for colour_type, colours, alphas in ((0, 1, 0), (2, 3, 0), (4, 1, 1), (6, 3, 1)):
        for interlace, filters in ((0, (b"\0", b"")), (1, (b"\0", b"\0"))):
            for level, opacity in itertools.product((0, 1, 255, 256, 65535), (0, 255, 65535)):
                pixel = struct.pack(">H", level) * colours + struct.pack(">H", opacity) * alphas
                scanlines = filters[0] + bytes(len(pixel)) + filters[1] + pixel
                file = png(2, 1, scanlines, depth=16, colour_type=colour_type, interlace=interlace)
                case = f"colour type {colour_type}, interlace {interlace}, level {level}, opacity {opacity}"
                if 0 < level < 256:
                    with pytest.raises(InvalidImage, match=r"^a 16-bit image whose values fit into 8 bits: save it as"):
                        pytest.fail(f"{case}: {pixels(decode(file)).tolist()}")
                else:
                    assert pixels(decode(file)).tolist() == [[[0] * 3, [level >> 8] * 3]], case
