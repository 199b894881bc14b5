"""What is kept of an image: small, and something that every browser shows."""

import io

from PIL import Image

from jrm_service.api.watch.pictures import SIDE, SMALL_BYTES, picture_of
from jrm_service.errors import InvalidImage
from jrm_service.images.reader import ImageInput
from support.cases import each
from support.pictures import ODD_FILES, encode, photo, rotated_by_exif


def kept(data, **options):
    return picture_of(ImageInput.of("edits[0]", data), **{"may_decode": True, **options})


@each(("kind", "media_type"), [("PNG", "image/png"), ("JPEG", "image/jpeg"), ("WEBP", "image/webp")])
def test_a_small_file_is_kept_as_it_came(kind, media_type):
    data = encode(photo(64, 48), kind)
    picture = kept(data, may_decode=False)
    assert (picture.content, picture.media_type) == (data, media_type)
    assert picture.content is data


@each("kind", ["PNG", "JPEG", "WEBP", "PPM"])
def test_of_a_large_file_there_is_a_thumbnail(kind):
    data = encode(photo(1024, 640), kind, **({} if kind in ("PNG", "PPM") else {"quality": 100}))
    assert len(data) > SMALL_BYTES
    picture = kept(data)
    with Image.open(io.BytesIO(picture.content)) as image:
        assert (image.format, image.size) == ("JPEG", (SIDE, SIDE * 640 // 1024))
    assert picture.media_type == "image/jpeg"
    assert kept(data, may_decode=False) is None


def test_a_ppm_is_never_kept_as_it_came():
    """No browser shows one."""
    picture = kept(encode(photo(20, 10), "PPM"))
    with Image.open(io.BytesIO(picture.content)) as image:
        assert (image.format, image.size) == ("JPEG", (20, 10))


def test_a_small_file_of_many_pixels_is_not_left_to_browsers():
    data = encode(Image.new("RGB", (1700, 1700)), optimize=True)
    assert len(data) < SMALL_BYTES
    with Image.open(io.BytesIO(kept(data).content)) as image:
        assert image.size == (SIDE, SIDE)


def test_a_thumbnail_is_upright():
    large = encode(
        photo(1200, 640, seed=5), "JPEG", quality=100, exif=Image.open(io.BytesIO(rotated_by_exif())).getexif()
    )
    assert len(large) > SMALL_BYTES
    with Image.open(io.BytesIO(kept(large).content)) as image:
        assert image.height == SIDE > image.width


@each("name", ODD_FILES.keys() - {"huge"})  # see "too much to decode"
def test_odd_files_are_shown(name):
    picture = kept(ODD_FILES[name]())
    with Image.open(io.BytesIO(picture.content)) as image:
        image.load()
        assert picture.media_type == Image.MIME[image.format]


@each(
    "data",
    [
        InvalidImage("not valid base64"),
        b"",
        b"<script>alert(1)</script>",
        encode(photo(1024, 640))[:-100_000],
        encode(Image.new("RGB", (1800, 1800))),
    ],
    ids=["no image", "empty", "not an image", "cut short", "too much to decode"],
)
def test_what_cannot_be_shown_is_nothing(data):
    assert kept(data) is None


def test_equal_files_have_one_name():
    data = encode(photo())
    assert kept(data).id == kept(bytes(bytearray(data))).id != kept(encode(photo(seed=1))).id
