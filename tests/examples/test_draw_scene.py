"""The drawn scene: what lies in ``examples/scene`` is what the script draws, and only one edit is all right."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"
MODULE = runpy.run_path(str(EXAMPLES / "draw_scene.py"))


def test_the_pictures_in_the_repository_are_those_that_are_drawn(tmp_path):
    MODULE["main"](tmp_path)
    drawn, kept = ({file.name: file for file in folder.iterdir()} for folder in (tmp_path, EXAMPLES / "scene"))
    assert set(drawn) == set(kept)
    for name in drawn:
        with Image.open(drawn[name]) as one, Image.open(kept[name]) as other:
            assert np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 2  # pillow versions round apart


def test_edits_differ_from_each_other():
    edits = MODULE["edits"]()
    assert len({image.tobytes() for image in edits.values()}) == len(edits)
    assert edits["unchanged"].tobytes() == MODULE["source"]().tobytes()


@pytest.mark.parametrize("name", ["recoloured", "half of it", "green instead"])
def test_only_the_square_changes(name):
    changed = np.asarray(MODULE["edits"]()[name]) != np.asarray(MODULE["source"]())
    rows, columns = np.nonzero(changed.any(axis=2))
    assert (rows.min(), rows.max()) == (30, 84)
    assert columns.min() == 24
    assert columns.max() <= 78
