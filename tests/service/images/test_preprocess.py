"""Grid and values are those of transformers' own image processor, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as reference

from jrm_service.errors import ImageTooLarge
from jrm_service.images.decode import decode
from jrm_service.images.preprocess import ImageSpec, digest, grid, patches, resize, smart_resize, tokens

from .samples import encode, photo

PUBLISHED = ImageSpec(min_pixels=200_704, max_pixels=200_704)
RANGE = ImageSpec(min_pixels=64 * 64, max_pixels=256 * 256)
TINY = ImageSpec(min_pixels=32 * 32, max_pixels=128 * 128, patch_size=8)
SPECS = {
    "published": PUBLISHED,
    "range": RANGE,
    "tiny": TINY,
    "bilinear": ImageSpec(min_pixels=4096, max_pixels=65536, resample="bilinear"),
    "lanczos": ImageSpec(min_pixels=4096, max_pixels=65536, resample="lanczos"),
    "clip-mean-std": ImageSpec(
        min_pixels=3136,
        max_pixels=100_352,
        patch_size=14,
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
    ),
    "merge-1-temporal-3": ImageSpec(min_pixels=4096, max_pixels=65536, merge_size=1, temporal_patch_size=3),
}
SIZES = [
    (1, 1), (3, 5), (2, 199), (199, 1), (1, 200), (31, 33), (32, 32), (64, 512), (800, 100),
    (448, 448), (451, 300), (640, 480), (1024, 1024), (3000, 2000),
]  # fmt: skip


def processor(spec: ImageSpec) -> reference.Qwen2VLImageProcessorPil:
    return reference.Qwen2VLImageProcessorPil(
        size={"shortest_edge": spec.min_pixels, "longest_edge": spec.max_pixels},
        resample=Image.Resampling[spec.resample.upper()],
        patch_size=spec.patch_size,
        merge_size=spec.merge_size,
        temporal_patch_size=spec.temporal_patch_size,
        image_mean=list(spec.mean),
        image_std=list(spec.std),
    )


def assert_equal_to_reference(image: Image.Image, spec: ImageSpec) -> None:
    expected = processor(spec)(image, return_tensors="np")
    pixels = resize(image, spec)
    values = patches(pixels, spec)
    assert [list(grid(pixels, spec))] == expected["image_grid_thw"].tolist()
    assert tokens(pixels, spec) == expected["image_grid_thw"].prod() // spec.merge_size**2
    assert values.dtype == expected["pixel_values"].dtype == np.float32
    np.testing.assert_array_equal(values, expected["pixel_values"], strict=True)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("spec", [PUBLISHED, RANGE, TINY], ids=["published", "range", "tiny"])
def test_values_equal_the_reference_at_every_size(size: tuple[int, int], spec: ImageSpec) -> None:
    assert_equal_to_reference(photo(*size), spec)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_values_equal_the_reference_for_every_spec(spec: ImageSpec) -> None:
    assert_equal_to_reference(photo(203, 151), spec)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_a_decoded_file_equals_the_reference_on_the_original(mode: str) -> None:
    original = photo(90, 70).convert(mode)
    file = encode(original, "JPEG" if mode == "CMYK" else "PNG")
    rgb = decode(file) if mode == "CMYK" else original.convert("RGB")
    expected = processor(RANGE)(rgb, return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(patches(resize(decode(file), RANGE), RANGE), expected, strict=True)


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 300), height=st.integers(1, 300), spec=st.sampled_from(list(SPECS.values())))
def test_values_equal_the_reference_anywhere(width: int, height: int, spec: ImageSpec) -> None:
    assume(max(width, height) <= 200 * min(width, height))
    assert_equal_to_reference(photo(width, height), spec)


@settings(max_examples=500, deadline=None)
@given(
    height=st.integers(1, 20_000),
    width=st.integers(1, 20_000),
    patch=st.sampled_from([8, 14, 16]),
    merge=st.sampled_from([1, 2, 4]),
    areas=st.tuples(st.integers(1, 2_000_000), st.integers(1, 2_000_000)).map(sorted),
)
def test_smart_resize_equals_the_reference(height: int, width: int, patch: int, merge: int, areas: list[int]) -> None:
    spec = ImageSpec(min_pixels=areas[0], max_pixels=areas[1], patch_size=patch, merge_size=merge)
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(ImageTooLarge):
            smart_resize(height, width, spec)
        return
    expected = reference.smart_resize(height, width, patch * merge, *areas)
    assert smart_resize(height, width, spec) == expected
    assert min(expected) >= spec.factor


@pytest.mark.parametrize(("height", "width"), [(1, 200), (200, 1), (5, 1000)])
def test_a_ratio_of_200_is_accepted(height: int, width: int) -> None:
    assert smart_resize(height, width, PUBLISHED) == reference.smart_resize(height, width, 32, 200_704, 200_704)


@pytest.mark.parametrize(("height", "width"), [(1, 201), (201, 1), (5, 1001)])
def test_a_ratio_over_200_is_too_large(height: int, width: int) -> None:
    with pytest.raises(ImageTooLarge, match="aspect ratio over the limit of 200"):
        smart_resize(height, width, PUBLISHED)


def test_resized_pixels_are_plain_memory_of_their_own() -> None:
    for image in (photo(448, 448), photo(100, 50)):
        pixels = resize(image, PUBLISHED)
        assert pixels.dtype == np.uint8
        assert pixels.flags.c_contiguous
        assert pixels.flags.owndata
        assert pixels.flags.writeable


def test_an_image_of_the_right_size_is_not_touched() -> None:
    np.testing.assert_array_equal(resize(photo(448, 448), PUBLISHED), np.asarray(photo(448, 448)))


def test_only_rgb_is_resized() -> None:
    with pytest.raises(ValueError, match="image is RGBA, must be RGB"):
        resize(photo().convert("RGBA"), PUBLISHED)


def test_patches_do_not_need_contiguous_pixels() -> None:
    pixels = resize(photo(100, 50), RANGE)
    np.testing.assert_array_equal(patches(np.asfortranarray(pixels), RANGE), patches(pixels, RANGE))


def test_a_published_square_is_196_tokens() -> None:
    assert tokens(resize(photo(448, 448), PUBLISHED), PUBLISHED) == 196


@pytest.mark.parametrize("shape", [(32, 33, 3), (16, 32, 3), (0, 32, 3), (32, 32, 4)])
def test_pixels_that_are_not_whole_blocks_are_refused(shape: tuple[int, ...]) -> None:
    pixels = np.zeros(shape, np.uint8)
    for function in (grid, tokens, patches):
        with pytest.raises(ValueError, match="must be \\[H, W, 3\\] with H and W multiples of 32"):
            function(pixels, PUBLISHED)


def test_a_digest_names_pixels_and_shape() -> None:
    pixels = resize(photo(64, 64), RANGE)
    assert len(digest(pixels)) == 16
    assert digest(pixels) == digest(np.asfortranarray(pixels.copy()))
    changed = pixels.copy()
    changed[-1, -1, -1] ^= 1
    assert digest(changed) != digest(pixels)
    assert digest(pixels.reshape(32, 128, 3)) != digest(pixels)


def test_a_digest_is_the_same_on_every_machine() -> None:
    assert digest(np.zeros((32, 32, 3), np.uint8)).hex() == "0d3e16d41ac4989f13f924959d8a250d"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("min_pixels", 0),
        ("max_pixels", 100),
        ("patch_size", 0),
        ("merge_size", -1),
        ("temporal_patch_size", 0),
        ("resample", "cubic"),
        ("mean", (0.5, 0.5)),
        ("mean", (0.5, float("nan"), 0.5)),
        ("std", (0.5, 0.0, 0.5)),
    ],
)
def test_a_spec_that_cannot_work_is_refused_by_field(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        ImageSpec(**{"min_pixels": 1000, "max_pixels": 2000, field: value})  # type: ignore[arg-type]
