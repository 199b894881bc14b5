"""WebP headers of all three kinds."""

from __future__ import annotations

import pytest

from jrm_service.errors import InvalidImage
from jrm_service.images.decode import decode

from .samples import encode, exif, photo, size

LOSSY, LOSSLESS = encode(photo(), "WEBP"), encode(photo(), "WEBP", lossless=True)
EXTENDED = encode(photo(), "WEBP", exif=exif(1))


@pytest.mark.parametrize(
    ("file", "kind"),
    [(LOSSY, b"VP8 "), (LOSSLESS, b"VP8L"), (EXTENDED, b"VP8X")],
    ids=["lossy", "lossless", "extended"],
)
def test_the_size_is_in_the_first_chunk(file: bytes, kind: bytes) -> None:
    assert file[12:16] == kind
    assert size(file) == decode(file).size == (37, 23)


def test_a_length_beyond_the_file_is_truncation() -> None:
    with pytest.raises(InvalidImage, match=r"^truncated WebP$"):
        size(LOSSY[:-1])


@pytest.mark.parametrize(("file", "at"), [(LOSSY, 23), (LOSSLESS, 20), (EXTENDED, 12)])
def test_an_unreadable_header_is_damage(file: bytes, at: int) -> None:
    with pytest.raises(InvalidImage, match=r"^damaged WebP: no usable header$"):
        size(file[:at] + b"\0" + file[at + 1 :])


def test_a_canvas_that_its_frame_does_not_fill_is_damage() -> None:
    with pytest.raises(InvalidImage, match=r"^damaged WebP$"):
        decode(EXTENDED[:24] + (99).to_bytes(3, "little") + EXTENDED[27:])
