"""The example edits: deterministic, distinct, and the good one changes only what was asked for."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"
MODULE = runpy.run_path(str(EXAMPLES / "make_edits.py"))
edits: Callable[[Image.Image], dict[str, Image.Image]] = MODULE["edits"]


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    with Image.open(EXAMPLES / "photo.jpg") as file:
        return file.convert("RGB")


def test_edits_are_the_same_on_every_run(photo: Image.Image) -> None:
    first, second = edits(photo), edits(photo)
    assert {name: image.tobytes() for name, image in first.items()} == {n: i.tobytes() for n, i in second.items()}


def test_edits_are_rgb_and_differ_from_each_other(photo: Image.Image) -> None:
    made = edits(photo)
    assert {image.mode for image in made.values()} == {"RGB"}
    assert len({image.tobytes() for image in made.values()}) == len(made) >= 6


def test_the_unchanged_edit_is_a_copy(photo: Image.Image) -> None:
    copy = edits(photo)["unchanged"]
    assert copy is not photo
    assert copy.tobytes() == photo.tobytes()


def test_the_recoloured_edit_turns_the_saucer_blue_and_leaves_the_table(photo: Image.Image) -> None:
    before, after = np.asarray(photo).astype(int), np.asarray(edits(photo)["recoloured"]).astype(int)
    saucer, table = np.s_[230:260, 90:150], np.s_[:, 430:]
    assert before[saucer][..., 0].mean() > before[saucer][..., 2].mean() + 50
    assert after[saucer][..., 2].mean() > after[saucer][..., 0].mean() + 50
    np.testing.assert_array_equal(after[table], before[table])


def test_the_photo_is_small() -> None:
    assert (EXAMPLES / "photo.jpg").stat().st_size < 300_000


def test_the_script_writes_every_edit(photo: Image.Image, tmp_path: Path) -> None:
    MODULE["main"](tmp_path / "out")
    assert {file.stem for file in (tmp_path / "out").iterdir()} == set(edits(photo))
