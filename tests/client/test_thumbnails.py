"""Images as data URLs."""

import base64
import io

import pytest
from PIL import Image

from jrm_client.thumbnails import SIDE, data_url, pictures_of
from support.cases import each
from support.pictures import ODD_FILES, encode, photo


def opened(url: str | None) -> Image.Image:
    assert url is not None
    head, _, data = url.partition(",")
    image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    assert head == f"data:image/{image.format.lower()};base64"  # type: ignore[union-attr]
    image.load()
    return image


def test_a_large_image_is_made_small_and_a_small_one_keeps_its_size() -> None:
    assert opened(data_url(photo(1024, 512), "a")).size == (SIDE, SIDE // 2)
    assert opened(data_url(photo(30, 20), "a")).size == (30, 20)


def test_the_smaller_of_two_formats_is_taken() -> None:
    assert opened(data_url(Image.new("RGB", (300, 300), "red"), "a")).format == "PNG"
    assert opened(data_url(photo(300, 300), "a")).format == "JPEG"


@each("name", ODD_FILES)
def test_every_kind_of_file(name: str) -> None:
    assert max(opened(data_url(ODD_FILES[name](), name)).size) <= SIDE


@each("data", [b"", b"no image", encode(photo())[:-500]])
def test_what_is_no_image_has_no_url(data: bytes) -> None:
    assert data_url(data, "a") is None


def test_what_is_not_even_an_argument_is_refused() -> None:
    with pytest.raises(TypeError, match="edits"):
        data_url(7, "edits[0]")  # type: ignore[arg-type]
    with pytest.raises(OSError, match="edits"):
        data_url("/no/such/file.png", "edits[0]")


def test_an_edit_that_is_there_twice_is_shown_twice() -> None:
    image = photo(8, 8)
    made = pictures_of("red", [], [("a", image), ("a", image)])
    assert [one.name for one in made.edits] == ["a", "a"]
    assert made.sources == ()
