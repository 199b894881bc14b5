"""P6 files of any maxval, equal to pillow's slow decoder."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jrm_service.errors import InvalidImage
from jrm_service.images.decode import decode

from .samples import pixels, size


@settings(max_examples=60, deadline=None)
@given(maxval=st.integers(1, 65535) | st.integers(1, 256), seed=st.integers(0, 99))
def test_any_maxval_is_scaled_as_pillow_scales_it(maxval: int, seed: int) -> None:
    """Samples over maxval are among them: pillow clamps, so do we."""
    body = np.random.default_rng(seed).bytes(3 * 4 * 3 * (2 if maxval > 255 else 1))
    file = b"P6\n4 3\n%d\n" % maxval + body
    np.testing.assert_array_equal(pixels(decode(file)), pixels(Image.open(io.BytesIO(file))))


def test_every_two_byte_level_is_scaled_as_pillow_scales_it() -> None:
    file = b"P6 256 86 65535\n" + np.arange(256 * 86 * 3).astype(">u2").tobytes()
    np.testing.assert_array_equal(pixels(decode(file)), pixels(Image.open(io.BytesIO(file))))


@pytest.mark.parametrize(
    "header", [b"P6 2 1 255\n", b"P6\n#c\n2\t1\r255 ", b"P6 \n # a # b\r 2 #\n\n 1\n#255\n255\n", b"P6\v2\f1\n0255\n"]
)
def test_white_space_and_comments_separate_the_header(header: bytes) -> None:
    assert pixels(decode(header + b"\x20\x0a\x03\x04\x05\x06")).tolist() == [[[32, 10, 3], [4, 5, 6]]]


@pytest.mark.parametrize(
    "file",
    [
        b"P6 ",
        b"P6 2 1\n",
        b"P6 2 1 255",
        b"P6 -2 1 255\nabcdef",
        b"P6 2 1 0\nabcdef",
        b"P6 2 1 65536\nabcdef",
        b"P6 0 1 255\nabcdef",
        b"P6 2 0 255\nabcdef",
        b"P6 2 1e3 255\nabcdef",
        b"P6 22222222222 1 255\nabcdef",
        b"P6 #" + b"x" * 200_000,
        b"P6 " + b"#\n" * 100_000,
    ],
)
def test_an_unusable_header_is_damage(file: bytes) -> None:
    with pytest.raises(InvalidImage, match=r"^damaged PPM"):
        size(file)


def test_missing_samples_are_truncation() -> None:
    with pytest.raises(InvalidImage, match=r"^truncated PPM$"):
        decode(b"P6 2 1 255\nabcde")
    with pytest.raises(InvalidImage, match=r"^truncated PPM$"):
        decode(b"P6 2 1 256\nabcdefghijk")
