"""Every reader of a sent image sees what training sees."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from jrm_service.images.decode import decode
from jrm_training.annotate.pictures import data_url, pixels
from support.pictures import ODD_FILES, encode, photo


def sent(path):
    """Media type and bytes."""
    head, _, data = data_url(path).partition(";base64,")
    return head, base64.b64decode(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_plain_file_goes_out_as_it_is(tmp_path, kind):
    path = tmp_path / "image"
    path.write_bytes(encode(photo(), kind))
    assert sent(path) == (f"data:image/{kind.lower()}", path.read_bytes())


def test_a_reader_without_our_rules_sees_the_same_pixels(tmp_path):
    for name, make in ODD_FILES.items():
        path = tmp_path / "image"
        path.write_bytes(make())
        with Image.open(io.BytesIO(sent(path)[1])) as image:
            assert image.mode == "RGB", name
            assert np.array_equal(np.asarray(image), np.asarray(decode(path.read_bytes()))), name


def test_no_image(tmp_path):
    path = tmp_path / "image"
    for read in (data_url, pixels):
        with pytest.raises(ValueError, match="No such file"):
            read(path)
    path.write_bytes(b"words")
    for read in (data_url, pixels):
        with pytest.raises(ValueError, match="image: not a PNG"):
            read(path)


def test_pixels_are_those_of_the_header(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(encode(photo(30, 20)))
    assert pixels(path) == 600
