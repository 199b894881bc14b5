"""Every kind of file becomes what ``docs/images.md`` says, or one of two errors."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile
from transformers.image_utils import load_image

from jrm_service.errors import ImageTooLarge, InvalidImage
from jrm_service.images.decode import MAX_PIXELS, decode, read_header

from .samples import SIGNATURE, chunk, encode, exif, insert_segment, photo, pixels, png, size

FILES = {
    "png": encode(photo(), "PNG"),
    "png-palette": encode(photo().quantize(32), "PNG"),
    "jpeg": encode(photo(), "JPEG", quality=90),
    "jpeg-progressive": encode(photo(), "JPEG", progressive=True),
    "webp": encode(photo(), "WEBP"),
    "webp-lossless": encode(photo(), "WEBP", lossless=True),
    "ppm": encode(photo(), "PPM"),
}
every_file = pytest.mark.parametrize("file", FILES.values(), ids=FILES.keys())


def training_pixels(file: bytes) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pillow warns about a palette with several alphas
        return pixels(load_image(Image.open(io.BytesIO(file))))


def with_alpha() -> Image.Image:
    image = photo().convert("RGBA")
    image.putalpha(image.getchannel("R"))
    return image


def palette_with_alpha() -> bytes:
    return encode(photo().quantize(16), "PNG", transparency=bytes(range(0, 256, 16)))


INPUTS = {
    **FILES,
    "rgba": encode(with_alpha(), "PNG"),
    "rgba-webp": encode(with_alpha(), "WEBP", lossless=True),
    "rgba-webp-lossy": encode(with_alpha(), "WEBP"),
    "gray": encode(photo().convert("L"), "PNG"),
    "gray-jpeg": encode(photo().convert("L"), "JPEG"),
    "gray-alpha": encode(with_alpha().convert("LA"), "PNG"),
    "one-bit": encode(photo().convert("1"), "PNG"),
    "palette-4-colours": encode(photo().quantize(4), "PNG", bits=2),
    "palette-alpha": palette_with_alpha(),
    "palette-one-transparent": encode(photo().quantize(16), "PNG", transparency=3),
    "rgb-transparent-colour": encode(photo(), "PNG", transparency=(40, 60, 128)),
    "cmyk": encode(photo().convert("CMYK"), "JPEG"),
    "jpeg-444": encode(photo(), "JPEG", subsampling=0),
    "jpeg-rgb": encode(photo(), "JPEG", keep_rgb=True),
    "jpeg-restarts": encode(photo(64, 48), "JPEG", restart_marker_blocks=2),
    "icc-gamma": png(1, 1, b"\0\x10\x80\xf0", before=[chunk(b"gAMA", struct.pack(">I", 100000))]),
    "ppm-comment": b"P6 # made by hand\n# twice\n2 1\n255\n\x01\x02\x03\xf1\xf2\xf3",
    **{f"exif-{value}": encode(photo(), "JPEG", exif=b"Exif\0\0" + exif(value)) for value in range(10)},
}


@pytest.mark.parametrize("file", INPUTS.values(), ids=INPUTS.keys())
def test_pixels_equal_what_training_code_sees(file: bytes) -> None:
    np.testing.assert_array_equal(pixels(decode(file)), training_pixels(file))


def test_sixteen_bit_gray_keeps_its_high_byte() -> None:
    levels = np.array([[0, 255, 256, 0x8012, 65535]], np.uint16)
    decoded = pixels(decode(encode(Image.fromarray(levels), "PNG")))
    assert decoded.tolist() == [[[level >> 8] * 3 for level in levels[0].tolist()]]


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (4, 2), (6, 4)], ids=["rgb", "gray-alpha", "rgba"])
def test_sixteen_bit_colour_keeps_its_high_byte(colour_type: int, channels: int) -> None:
    file = png(2, 1, b"\0" + struct.pack(">H", 0x81FF) * channels * 2, depth=16, colour_type=colour_type)
    assert pixels(decode(file)).tolist() == [[[0x81] * 3] * 2]


def test_alpha_is_dropped_not_composited() -> None:
    invisible = Image.new("RGBA", (4, 4), (10, 200, 30, 0))
    assert pixels(decode(encode(invisible, "PNG"))).reshape(-1, 3).tolist() == [[10, 200, 30]] * 16


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_an_animation_is_its_first_frame(format: str) -> None:
    frames = [photo(), photo().transpose(Image.Transpose.ROTATE_180)]
    file = encode(frames[0], format, save_all=True, append_images=frames[1:], lossless=True)
    assert Image.open(io.BytesIO(file)).n_frames == 2
    np.testing.assert_array_equal(pixels(decode(file)), pixels(frames[0]))


def test_the_result_is_a_plain_image() -> None:
    """Nothing of the file, its metadata or its decoder is kept alive by it."""
    for file in FILES.values():
        assert type(decode(file)) is Image.Image


def huge_headers() -> dict[str, bytes]:
    side = 50_000
    jpeg = bytearray(FILES["jpeg"])
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
    canvas = (side - 1).to_bytes(3, "little")
    extended = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + canvas * 2
    lossless = bytearray(FILES["webp-lossless"])
    lossless[21:25] = struct.pack("<I", 16383 | 16383 << 14)
    return {
        "png": png(side, side, b""),
        "png-largest": png(2**31 - 1, 2**31 - 1, b""),
        "jpeg": bytes(jpeg),
        "webp-extended": b"RIFF" + struct.pack("<I", len(extended)) + extended,
        "webp-lossless": bytes(lossless),
        "ppm": b"P6 50000 50000 255\n",
    }


@pytest.mark.parametrize("entry", [decode, read_header])
@pytest.mark.parametrize("file", huge_headers().values(), ids=huge_headers().keys())
def test_a_huge_header_is_too_large(file: bytes, entry: object) -> None:
    with pytest.raises(ImageTooLarge, match="over the limit of 32 Mpixel"):
        entry(file)  # type: ignore[operator]


def test_the_pixel_limit_is_inclusive() -> None:
    assert size(png(8000, 4000, b"")) == (8000, 4000)
    assert MAX_PIXELS == 8000 * 4000
    with pytest.raises(ImageTooLarge):
        size(png(8001, 4000, b""))


def test_the_pixel_limit_can_be_lowered() -> None:
    with pytest.raises(ImageTooLarge, match=r"37 x 23 pixels, over the limit of 0\.00085 Mpixel"):
        decode(FILES["png"], max_pixels=850)
    assert decode(FILES["png"], max_pixels=851).size == (37, 23)


@pytest.mark.parametrize(
    ("size", "accepted"), [((200, 1), True), ((1, 200), True), ((201, 1), False), ((1, 201), False)]
)
def test_an_aspect_ratio_over_200_is_too_large(size: tuple[int, int], accepted: bool) -> None:
    file = encode(photo(*size), "PNG")
    if accepted:
        assert decode(file).size == size
    else:
        with pytest.raises(ImageTooLarge, match="aspect ratio over the limit of 200"):
            decode(file)


NOT_IMAGES = {
    "text": b"hello",
    "gif": encode(photo(), "GIF"),
    "bmp": encode(photo(), "BMP"),
    "tiff": encode(photo(), "TIFF"),
    "pgm": encode(photo().convert("L"), "PPM"),
    "plain-ppm": b"P3 1 1 255 1 2 3\n",
    "pfm": b"PF 1 1 -1.0\n" + bytes(12),
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n",
    "wav": b"RIFF\x24\0\0\0WAVEfmt ",
}


@pytest.mark.parametrize("file", NOT_IMAGES.values(), ids=NOT_IMAGES.keys())
def test_other_formats_are_refused_by_name(file: bytes) -> None:
    for entry in (decode, read_header):
        with pytest.raises(InvalidImage, match=r"^not a PNG, JPEG, WebP or PPM image$"):
            entry(file)


def test_no_bytes_are_an_empty_image() -> None:
    with pytest.raises(InvalidImage, match=r"^empty image$"):
        decode(b"")


@every_file
def test_a_cut_file_never_decodes_to_other_pixels(file: bytes) -> None:
    whole = pixels(decode(file))
    for length in range(len(file)):
        try:
            cut = decode(file[:length])
        except InvalidImage:
            continue
        np.testing.assert_array_equal(pixels(cut), whole)


@every_file
def test_a_file_cut_in_half_is_called_truncated(file: bytes) -> None:
    with pytest.raises(InvalidImage, match=r"^truncated (PNG|JPEG|WebP|PPM)$"):
        decode(file[: len(file) // 2])


@every_file
def test_a_host_that_lets_pillow_load_truncated_images_changes_nothing(
    file: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(InvalidImage, match=r"^truncated"):
        decode(file[:-10])


def test_trailing_bytes_are_ignored() -> None:
    for file in FILES.values():
        np.testing.assert_array_equal(pixels(decode(file + b"\0" * 100)), pixels(decode(file)))


def test_a_damaged_file_says_so_and_echoes_nothing() -> None:
    file = bytearray(FILES["webp"])
    file[40:60] = b"/etc/passwd-password"
    file[20:30] = bytes(10)
    with pytest.raises(InvalidImage) as caught:
        decode(bytes(file))
    assert str(caught.value) == "damaged WebP: no usable header"
    assert caught.value.__cause__ is None


def test_pillow_failing_on_hostile_bytes_is_a_damaged_image() -> None:
    """Of a WebP file everything but the header is libwebp's to judge."""
    file = FILES["webp"][:40] + b"\xff" * (len(FILES["webp"]) - 40)
    with pytest.raises(InvalidImage, match=r"^damaged WebP$") as caught:
        decode(file)
    assert caught.value.__suppress_context__


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_hostile_bytes_give_an_rgb_image_or_one_of_two_errors(data: st.DataObject) -> None:
    file = bytearray(data.draw(st.sampled_from([*FILES.values(), INPUTS["exif-6"], INPUTS["palette-alpha"]])))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(file)))
        match data.draw(st.sampled_from(["flip", "cut", "insert", "repeat"])):
            case "flip" if at < len(file):
                file[at] ^= data.draw(st.integers(1, 255))
            case "cut":
                del file[at : at + data.draw(st.integers(1, 40))]
            case "insert":
                file[at:at] = data.draw(st.binary(min_size=1, max_size=12))
            case "repeat":
                file[at:at] = file[at : at + data.draw(st.integers(1, 40))]
    try:
        image = decode(bytes(file), max_pixels=1_000_000)
    except (InvalidImage, ImageTooLarge):
        return
    assert image.mode == "RGB"
    assert sorted(image.size) == sorted(size(bytes(file)))


@settings(max_examples=100, deadline=None)
@given(width=st.integers(0, 300), height=st.integers(0, 300), depth=st.integers(0, 17), colour_type=st.integers(0, 7))
def test_no_png_header_gets_past_its_image_data(width: int, height: int, depth: int, colour_type: int) -> None:
    """The checksums of a hostile file can be right: then the header still has to fit the pixels."""
    scanlines = bytes(50)
    file = png(width, height, scanlines, depth=depth, colour_type=colour_type)
    try:
        decode(file)
    except (InvalidImage, ImageTooLarge):
        return
    samples = {0: 1, 2: 3, 4: 2, 6: 4}[colour_type]
    assert height * (1 + -(-width * depth * samples // 8)) <= len(scanlines)


def test_size_is_as_stored_and_decoding_turns_it_upright() -> None:
    file = encode(photo(), "JPEG", exif=b"Exif\0\0" + exif(6))
    assert size(file) == (37, 23)
    assert decode(file).size == (23, 37)


@every_file
def test_decoded_bytes_cover_the_result(file: bytes) -> None:
    """Pillow keeps an RGB pixel in four bytes."""
    assert read_header(file).decoded_bytes >= 37 * 23 * 4


def test_decoded_bytes_need_no_image_data() -> None:
    assert read_header(png(6000, 5000, b"")).decoded_bytes >= 6000 * 5000 * 4


def test_damaged_metadata_neither_warns_nor_matters() -> None:
    """Pillow would warn about each of these, and a warning may be configured to be an error."""
    jpeg = FILES["jpeg"]
    hostile = [
        insert_segment(jpeg, 0xE1, b"Exif\0\0" + exif(6)[:20]),
        insert_segment(jpeg, 0xE1, b"Exif\0\0II\x2a\0\xff\xff\xff\xff"),
        insert_segment(jpeg, 0xE2, b"MPF\0" + b"II\x2a\0\x08\0\0\0\x01\0\x01\xb0\x04\0\x01\0\0\0\x02\0\0\0"),
        insert_segment(jpeg, 0xED, b"Photoshop 3.0\0" + b"8BIM\x03\xed\0\0\0\0\0\xff"),
    ]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for file in hostile:
            np.testing.assert_array_equal(pixels(decode(file)), pixels(decode(jpeg)))
    assert caught == []


def test_many_threads_decode_the_same_pixels() -> None:
    files = list(INPUTS.values()) * 8
    alone = [pixels(decode(file)) for file in INPUTS.values()] * 8
    with ThreadPoolExecutor(8) as pool:
        for expected, image in zip(alone, pool.map(decode, files), strict=True):
            np.testing.assert_array_equal(pixels(image), expected)


def test_a_text_chunk_that_would_inflate_to_gigabytes_costs_nothing() -> None:
    bomb = b"Comment\0\0" + zlib.compress(bytes(50_000_000), 9)
    file = FILES["png"][:33] + chunk(b"zTXt", bomb) + FILES["png"][33:]
    assert file.startswith(SIGNATURE)
    np.testing.assert_array_equal(pixels(decode(file)), pixels(photo()))
