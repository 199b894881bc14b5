"""Damaged image files: the right image or one of two errors, always the same one, within the memory announced."""

import io
import warnings

import numpy as np
import pytest
from hypothesis import given
from PIL import Image, ImageOps

from fuzz import corpus
from fuzz.effort import effort
from fuzz.mutations import damaged
from fuzz.verdicts import verdict

SEEDS = {path: path.read_bytes() for path in corpus.IMAGES if path.stat().st_size < 4000}
ACCEPTED = [file for path, file in SEEDS.items() if path.parent.name == "accepted"]


@pytest.mark.parametrize("path", corpus.IMAGES, ids=corpus.name)
def test_the_corpus_gets_its_verdict(path):
    assert (verdict(path.read_bytes()).error is None) == (path.parent.name == "accepted")


@effort(600)
@given(damaged([*SEEDS.values()]))
def test_a_damaged_file_is_an_image_or_a_typed_error(file):
    verdict(file)


@effort(600)
@given(damaged(ACCEPTED))
def test_an_accepted_file_has_the_pixels_that_pillow_sees(file):
    ours = verdict(file).pixels
    theirs = pillows(file)
    if ours is not None and theirs is not None:
        np.testing.assert_array_equal(ours, theirs)


def pillows(file: bytes) -> np.ndarray | None:
    """What training code sees, or None where pillow refuses, warns, or is known to differ."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            image = Image.open(io.BytesIO(file))
            if image.mode.startswith("I"):  # 16-bit gray, which load_image clips to white
                return None
            if image.info.get("progressive"):  # a scan may lack its last few bits, which either side makes up
                return None
            if image.format == "PNG" and image.is_animated:  # of whose metadata pillow reads what precedes frame two
                return None
            if image.info.get("exif") and not image.getexif():  # unreadable: pillow then may not look at XMP either
                return None
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except Exception:
        return None
