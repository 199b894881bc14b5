import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from jrm_client import images
from jrm_client.images import encode

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
FLOATS = PIXELS.transpose(2, 0, 1).astype(np.float32) / 255


def decode(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(decode(data).convert("RGB"))


# --- round trips ------------------------------------------------------------------------------------------------------

SAME_PIXELS: dict[str, Any] = {
    "pil": Image.fromarray(PIXELS),
    "uint8 array": PIXELS,
    "uint8 array, not contiguous": np.asfortranarray(PIXELS),
    "uint8 tensor": torch.from_numpy(PIXELS.copy()),
    "float32 array": FLOATS,
    "float64 array": PIXELS.transpose(2, 0, 1) / 255,
    "float16 array": FLOATS.astype(np.float16),
    "float32 tensor": torch.from_numpy(FLOATS),
    "float16 tensor": torch.from_numpy(FLOATS).half(),
    "tensor with gradients": torch.from_numpy(FLOATS).clone().requires_grad_(),
    "tensor slice": torch.from_numpy(FLOATS).repeat(2, 1, 1, 1)[1],
    "channels-last tensor": torch.from_numpy(FLOATS)[None].to(memory_format=torch.channels_last)[0],
}


@pytest.mark.parametrize("image_format", ["ppm", "png"])
@pytest.mark.parametrize("kind", SAME_PIXELS)
def test_pixels_arrive_as_they_are(kind: str, image_format: Any) -> None:
    data = encode(SAME_PIXELS[kind], "image", image_format)
    assert decode(data).format == image_format.upper()
    np.testing.assert_array_equal(pixels(data), PIXELS)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_are_sent_as_they_are(kind: Any) -> None:
    assert encode(kind(b"whatever"), "image") == b"whatever"
    assert encode(kind(b""), "image") == b""


@pytest.mark.parametrize("kind", [str, Path, os.fsencode])
def test_files_are_sent_as_they_are(kind: Any, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"\xff\xd8 jpeg")
    image = path if kind is os.fsencode else kind(path)
    assert encode(image, "image") == b"\xff\xd8 jpeg"


def test_floats_follow_the_trainers_rule() -> None:
    values = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)) * 1.4 - 0.2
    expected = (values * 255).round().clip(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(pixels(encode(values, "image")), expected)
    np.testing.assert_array_equal(pixels(encode(values.numpy(), "image")), expected)


def test_bfloat16_is_widened_before_it_is_scaled() -> None:
    values = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = (values.float() * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(pixels(encode(values, "image")), expected)


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(["ppm", "png"]))
def test_any_size(height: int, width: int, image_format: Any) -> None:
    assume(height != 3)  # could be CHW
    image = np.random.default_rng(height * 41 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    np.testing.assert_array_equal(pixels(encode(image, "image", image_format)), image)


def test_a_huge_image_becomes_png_so_that_it_cannot_fill_a_request() -> None:
    assert decode(encode(np.zeros((3000, 3000, 3), np.uint8), "image")).format == "PNG"
    assert decode(encode(Image.new("RGB", (3000, 3000)), "image")).format == "PNG"


# --- PIL --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_modes_that_png_holds_are_sent_without_loss(mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(RNG.integers(0, 65536, (5, 7), dtype=np.uint16))
    elif mode == "P":
        image = Image.fromarray(PIXELS).quantize(16)
    elif mode in ("LA", "RGBA"):
        image = Image.fromarray(RNG.integers(0, 256, (5, 7, len(mode)), dtype=np.uint8), mode)
    else:
        image = Image.fromarray(PIXELS).convert(mode)
    sent = decode(encode(image, "image"))
    assert sent.mode == mode
    np.testing.assert_array_equal(np.asarray(sent), np.asarray(image))
    np.testing.assert_array_equal(np.asarray(sent.convert("RGBA")), np.asarray(image.convert("RGBA")))


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "RGBX", "PA", "RGBa", "La"])
def test_other_modes_go_through_pillows_conversion(mode: str) -> None:
    middle = {"PA": "P", "RGBa": "RGBA", "La": "LA"}.get(mode)
    image = Image.fromarray(PIXELS)
    image = (image.convert(middle) if middle else image).convert(mode)
    through = {"RGBa": "RGBA", "La": "LA"}.get(mode)
    expected = (image.convert(through) if through else image).convert("RGB")
    np.testing.assert_array_equal(pixels(encode(image, "image")), np.asarray(expected))


def test_32_bit_integers_within_16_bits_are_kept() -> None:
    values = RNG.integers(0, 65536, (5, 7), dtype=np.int32)
    sent = decode(encode(Image.fromarray(values), "image"))
    np.testing.assert_array_equal(np.asarray(sent), values)


def test_big_endian_16_bit() -> None:
    values = RNG.integers(0, 65536, (5, 7), dtype=np.uint16)
    image = Image.frombytes("I;16B", (7, 5), values.astype(">u2").tobytes())
    np.testing.assert_array_equal(np.asarray(decode(encode(image, "image"))), values)


def test_modes_without_a_meaning_are_refused() -> None:
    with pytest.raises(TypeError, match=r"edits\[3\]: PIL mode F"):
        encode(Image.new("F", (4, 4)), "edits[3]")
    with pytest.raises(ValueError, match=r"edits\[3\]: PIL mode I with values outside 0..65535"):
        encode(Image.fromarray(np.full((4, 4), -1, np.int32)), "edits[3]")


EIGHT_BITS = np.asarray(Image.fromarray(PIXELS).convert("L"))


@pytest.mark.parametrize("white", [255, 1023, 4095])
def test_fewer_than_16_bits_in_a_16_or_32_bit_mode_are_refused_with_the_remedy(white: int) -> None:
    values = (EIGHT_BITS / 255 * white).astype(np.uint16)
    accepted = {
        "I": Image.fromarray(values.astype(np.int32)),
        "I;16": Image.fromarray(values),
        "I;16B": Image.frombytes("I;16B", (7, 5), values.astype(">u2").tobytes()),
    }
    for mode, image in accepted.items():
        assert image.mode == mode
        with pytest.raises(ValueError, match=rf"^edits\[3\]: PIL mode {mode} .*almost black; pass 8 bits: "):
            encode(image, "edits[3]")
    with pytest.raises(ValueError, match="almost black"):
        images.decode(Image.fromarray(PIXELS).convert("I"), "edited")


@pytest.mark.parametrize("mode", ["I", "I;16", "I;16B"])
def test_black_is_black_on_every_scale(mode: str) -> None:
    assert not pixels(encode(Image.new(mode, (4, 4)), "image")).any()


def left_behind_by_pillow() -> dict[str, Image.Image]:
    """Images with a ``transparency`` that belonged to their former mode, and with other metadata that is none."""
    palette = Image.fromarray(PIXELS).quantize(16)
    palette.info["transparency"] = 3
    gray = Image.fromarray(PIXELS).convert("L")
    gray.info["transparency"] = 5
    found = {f"P -> {mode}": palette.convert(mode) for mode in ("CMYK", "YCbCr", "HSV", "RGBX", "1", "L", "RGB")}
    found |= {f"L -> {mode}": gray.convert(mode) for mode in ("CMYK", "YCbCr", "1", "RGB")}
    for mode in ("RGB", "L", "P", "RGBA", "LA", "1", "CMYK", "YCbCr"):
        for key, value in {
            "transparency": 77,
            "icc_profile": "sRGB",
            "exif": "Exif",
            "dpi": "300",
            "XML:com.adobe.xmp": 17,
            "gamma": None,
        }.items():
            image = Image.fromarray(PIXELS).convert(mode)
            image.info[key] = value
            found[f"{mode} with {key}={value!r}"] = image
    return found


@pytest.mark.parametrize("image_format", ["ppm", "png"])
def test_metadata_that_is_not_pixels_changes_nothing(image_format: Any) -> None:
    for what, image in left_behind_by_pillow().items():
        expected, before = image.copy(), dict(image.info)
        expected.info = {}
        data = encode(image, "image", image_format)
        np.testing.assert_array_equal(pixels(data), np.asarray(expected.convert("RGB")), err_msg=what)
        assert decode(data).info == {}, what
        assert image.info == before, what


def test_an_image_that_pillow_cannot_use_is_named(tmp_path: Path) -> None:
    closed = Image.fromarray(PIXELS)
    closed.close()
    path = tmp_path / "photo.png"
    Image.fromarray(PIXELS).save(path)
    fileless = Image.open(path)
    fileless.fp.close()
    for image in (closed, fileless):
        with pytest.raises(ValueError, match=r"^pairs\[17\].edited: pillow cannot load this image"):
            encode(image, "pairs[17].edited")


def photo(tmp_path: Path, orientation: int, suffix: str = "png") -> Path:
    path = tmp_path / f"photo.{suffix}"
    image = Image.fromarray(PIXELS)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    with Image.open(photo(tmp_path, orientation)) as image:
        data = encode(image, "image")
        np.testing.assert_array_equal(pixels(data), np.asarray(ImageOps.exif_transpose(image)))
    assert decode(data).getexif().get(0x0112, 1) == 1


def test_exif_orientation_is_applied_to_grayscale_too(tmp_path: Path) -> None:
    with Image.open(photo(tmp_path, 6)) as image:
        gray = image.convert("L")
    np.testing.assert_array_equal(np.asarray(decode(encode(gray, "image"))), np.rot90(np.asarray(gray), -1))


def test_damaged_exif_says_nothing_about_the_pixels() -> None:
    image = Image.fromarray(PIXELS)
    image.info["exif"] = b"Exif\0\0MM\0*\xff\xff\xff\xff"
    np.testing.assert_array_equal(pixels(encode(image, "image")), PIXELS)


def test_the_callers_image_is_left_alone(tmp_path: Path) -> None:
    with Image.open(photo(tmp_path, 6)) as image:
        encode(image, "image")
        assert image.size == (7, 5)
        assert image.getexif()[0x0112] == 6


def test_one_lazily_opened_image_in_many_threads(tmp_path: Path) -> None:
    large = RNG.integers(0, 256, (300, 400, 3), dtype=np.uint8)
    path = tmp_path / "large.png"
    Image.fromarray(large).save(path)
    with Image.open(path) as image, ThreadPoolExecutor(8) as pool:
        sent = list(pool.map(lambda _: encode(image, "image"), range(16)))
    assert len(set(sent)) == 1
    np.testing.assert_array_equal(pixels(sent[0]), large)


# --- refusals ---------------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "float HWC": (np.zeros((8, 9, 3), np.float32), ValueError, "this is HWC"),
    "uint8 CHW": (np.zeros((3, 8, 9), np.uint8), ValueError, "this is CHW"),
    "uint8 CHW tensor": (torch.zeros((3, 8, 9), dtype=torch.uint8), ValueError, "this is CHW"),
    "grayscale": (np.zeros((8, 9), np.uint8), ValueError, "grayscale"),
    "float grayscale": (torch.zeros(8, 9), ValueError, "grayscale"),
    "one channel": (torch.zeros(1, 8, 9), ValueError, r"expected \[3, H, W\]"),
    "alpha": (np.zeros((8, 9, 4), np.uint8), ValueError, "alpha"),
    "float alpha": (np.zeros((4, 8, 9), np.float32), ValueError, "alpha"),
    "a batch": (torch.zeros(2, 3, 8, 9), ValueError, "batch"),
    "empty": (np.zeros((0, 9, 3), np.uint8), ValueError, "empty"),
    "float empty": (np.zeros((3, 8, 0), np.float32), ValueError, "empty"),
    "PIL empty": (Image.new("RGB", (0, 4)), ValueError, "empty"),
    "int64": (np.zeros((8, 9, 3), np.int64), TypeError, "dtype int64"),
    "bool": (np.zeros((8, 9, 3), bool), TypeError, "dtype bool"),
    "complex": (np.zeros((3, 8, 9), np.complex64), TypeError, "dtype complex64"),
    "int tensor": (torch.zeros((3, 8, 9), dtype=torch.int32), TypeError, "dtype int32"),
    "0..255 floats": (FLOATS * 255, ValueError, r"values from 0 to \d+; expected floats in \[0, 1\]"),
    "-1..1 floats": (FLOATS * 2 - 1, ValueError, "values from -1 to .*; expected"),
    "-1..1 floats without shadows": (FLOATS * 1.3 - 0.3, ValueError, "x / 2 [+] 0.5 of -1..1"),
    "uint16": (np.zeros((8, 9, 3), np.uint16), TypeError, "dtype uint16"),
    "a mask": (np.ma.masked_less(FLOATS, 0.5), TypeError, "masked array"),
    "CHW or HWC": (np.zeros((3, 8, 3), np.float32), ValueError, "either 3 may be the channels"),
    "CHW or HWC uint8": (np.zeros((3, 8, 3), np.uint8), ValueError, "either 3 may be the channels"),
    "a sparse tensor": (torch.zeros(3, 8, 9).to_sparse(), TypeError, "cannot become an array"),
    "a tensor without pixels": (torch.zeros((3, 8, 9), device="meta"), TypeError, "cannot become an array"),
    "a path with a null character": ("a\0b", ValueError, "not a path"),
    "a path with a surrogate": ("a\ud800b", ValueError, "not a path"),
    "NaN": (np.where(FLOATS > 0.9, np.nan, FLOATS), ValueError, "NaN"),
    "NaN tensor": (torch.full((3, 8, 9), torch.nan, dtype=torch.bfloat16), ValueError, "NaN"),
    "infinity": (np.where(FLOATS > 0.9, np.inf, FLOATS), ValueError, "NaN or infinite"),
    "None": (None, TypeError, "NoneType is not an image"),
    "a list": ([[0, 1], [2, 3]], TypeError, "list is not an image"),
    "an open file": (io.BytesIO(b"x"), TypeError, "BytesIO is not an image"),
    "a URL": ("https://example.org/a.png", ValueError, "URLs"),
    "base64": ("iVBORw0KGgo" * 1000, ValueError, "base64"),
    "a data URL": ("data:image/png;base64,iVBO", ValueError, "base64"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_an_image_is_refused_by_name(kind: str) -> None:
    image, error, message = REFUSED[kind]
    with pytest.raises(error, match=rf"^edits\[3\]: .*{message}"):
        encode(image, "edits[3]")


def test_the_message_does_not_echo_the_input() -> None:
    with pytest.raises(ValueError, match="base64") as caught:
        encode("iVBORw0KGgo" * 1000, "source")
    assert len(str(caught.value)) < 200


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"source: No such file or directory: .*nothing\.png"):
        encode(tmp_path / "nothing.png", "source")


def test_a_directory_is_not_an_image(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="source"):
        encode(tmp_path, "source")


def test_a_truncated_file_opened_by_pillow(tmp_path: Path) -> None:
    path = tmp_path / "cut.png"
    buffer = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "PNG")
    path.write_bytes(buffer.getvalue()[:3000])
    with Image.open(path) as image, pytest.raises(ValueError, match="source: pillow cannot load"):
        encode(image, "source")


def test_overshoot_is_clipped_up_to_a_limit() -> None:
    low, high = images.LOWEST, images.HIGHEST
    values = np.array([low, 0.0, 1.0, high], np.float32)
    data = encode(np.broadcast_to(values, (3, 1, 4)), "image")
    np.testing.assert_array_equal(pixels(data)[0, :, 0], [0, 0, 255, 255])
    with pytest.raises(ValueError, match="expected floats"):
        encode(np.full((3, 1, 1), np.nextafter(np.float32(high), np.float32(2))), "image")


# --- what the model sees ----------------------------------------------------------------------------------------------


def file(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rotated_jpeg() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return file(Image.new("RGB", (16, 8), (128, 128, 128)), "JPEG", exif=exif)


@pytest.mark.parametrize(
    ("image", "size", "color"),
    [
        (Image.new("RGB", (16, 8), "teal"), (16, 8), (0, 128, 128)),
        (file(Image.new("RGB", (16, 8), "teal"), "WEBP", lossless=True), (16, 8), (0, 128, 128)),
        (file(Image.new("RGBA", (16, 8), (1, 2, 3, 0))), (16, 8), (1, 2, 3)),
        (file(Image.new("P", (16, 8), 0), transparency=b"\0"), (16, 8), (0, 0, 0)),
        (file(Image.fromarray(np.full((8, 16), 0x1234, np.uint16))), (16, 8), (0x12, 0x12, 0x12)),
        (rotated_jpeg(), (8, 16), (128, 128, 128)),
    ],
)
def test_decoded_as_the_server_does(image: Any, size: tuple[int, int], color: tuple[int, int, int]) -> None:
    decoded = images.decode(image, "edited")
    assert (decoded.mode, decoded.size) == ("RGB", size)
    assert (np.asarray(decoded) == color).all()


@pytest.mark.parametrize("data", [b"", b"BAD", file(Image.new("RGB", (99, 99)))[:-30], b"GIF89a" + bytes(99)])
def test_bytes_that_are_no_whole_image(data: bytes) -> None:
    with pytest.raises(ValueError, match="edited: not a PNG, JPEG, WebP or PPM image"):
        images.decode(data, "edited")
