"""Orientation is found wherever pillow finds it, and unreadable metadata is no orientation."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from jrm_service.images.decode import decode
from jrm_service.images.orientation import read_orientation

from .samples import chunk, encode, exif, insert_chunks, insert_segment, photo, pixels, xmp

PNG, JPEG, WEBP = encode(photo(), "PNG"), encode(photo(), "JPEG"), encode(photo(), "WEBP")
XMP_SEGMENT = b"http://ns.adobe.com/xap/1.0/\0"


def profile_text(block: bytes) -> bytes:
    """How ImageMagick writes an EXIF block into a text chunk."""
    return b"\nexif\n%8d\n%b\n" % (len(block), block.hex().encode())


PLACES = {
    "jpeg-exif": insert_segment(JPEG, 0xE1, b"Exif\0\0" + exif(6)),
    "jpeg-exif-in-two-segments": insert_segment(
        insert_segment(JPEG, 0xE1, b"Exif\0\0" + exif(6)[15:]), 0xE1, b"Exif\0\0" + exif(6)[:15]
    ),
    "jpeg-xmp": insert_segment(JPEG, 0xE1, XMP_SEGMENT + xmp(6)),
    "jpeg-exif-over-xmp": insert_segment(insert_segment(JPEG, 0xE1, XMP_SEGMENT + xmp(3)), 0xE1, b"Exif\0\0" + exif(6)),
    "png-exif": insert_chunks(PNG, chunk(b"eXIf", exif(6))),
    "png-exif-last": PNG[:-12] + chunk(b"eXIf", exif(6)) + PNG[-12:],
    "png-xmp": insert_chunks(PNG, chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(6))),
    "png-profile": insert_chunks(PNG, chunk(b"tEXt", b"Raw profile type exif\0" + profile_text(exif(6)))),
    "webp-exif": encode(photo(), "WEBP", exif=exif(6)),
    "webp-xmp": encode(photo(), "WEBP", xmp=xmp(6)),
}


@pytest.mark.parametrize(("place", "file"), PLACES.items(), ids=PLACES.keys())
def test_orientation_is_read_where_pillow_reads_it(place: str, file: bytes) -> None:
    stored = decode({"jpeg": JPEG, "png": PNG, "webp": WEBP}[place.split("-")[0]])
    np.testing.assert_array_equal(pixels(decode(file)), pixels(stored.transpose(Image.Transpose.ROTATE_270)))


@pytest.mark.parametrize("value", range(1, 9))
def test_every_orientation_is_undone(value: int) -> None:
    file = insert_chunks(PNG, chunk(b"eXIf", exif(value)))
    np.testing.assert_array_equal(pixels(decode(file)), pixels(ImageOps.exif_transpose(Image.open(io.BytesIO(file)))))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [1, 3, 4])
def test_both_byte_orders_and_all_integer_types_are_read(order: str, kind: int) -> None:
    assert read_orientation(exif(8, order, kind), None) == 8


@settings(max_examples=200, deadline=None)
@given(block=st.binary(max_size=60), cut=st.integers(0, 60))
def test_unreadable_metadata_is_upright_or_a_number(block: bytes, cut: int) -> None:
    for hostile in (block, b"II\x2a\0\x08\0\0\0" + block, exif(6)[:cut] + block):
        assert isinstance(read_orientation(hostile, block), int)


@pytest.mark.parametrize("block", [None, b"", b"MM", b"II\x2a\0\xff\xff\xff\xff", b"not a TIFF block", exif(6)[:18]])
def test_no_readable_orientation_is_upright(block: bytes | None) -> None:
    assert read_orientation(block, None) == 1
