"""The plots: drawn from a document alone, small, and different for different documents."""

import json

import pytest
from PIL import Image
from studies.plots import draw

from support import studies

NAMES = ["study-curves.png", "study-accuracy.png", "study-representation.png"]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    document = json.loads(json.dumps(studies.document(0.7, 0.0)))  # as it comes from the file
    return draw(document, tmp_path_factory.mktemp("plots") / "new")


def test_three_small_pictures(drawn):
    assert [file.name for file in drawn] == NAMES
    for file in drawn:
        assert file.stat().st_size < 200_000
        with Image.open(file) as picture:
            assert picture.width == 990


def test_both_runs_are_seen_in_each(drawn):
    for file in drawn:
        with Image.open(file) as picture:
            colours = {colour for _, colour in picture.convert("RGB").getcolors()}
        for red, green, blue in ((0, 114, 178), (213, 94, 0)):
            assert any(abs(r - red) + abs(g - green) + abs(b - blue) < 12 for r, g, b in colours), file.name


def test_a_single_run_without_intervals_picks_or_stages(tmp_path):
    document = studies.document(0.0, groups=1)
    document["runs"][0]["curves"]["stages"] = []
    document["runs"][0]["splits"]["test"]["reward"]["figures"]["pick_of_group"]["value"] = None
    assert [file.name for file in draw(document, tmp_path)] == NAMES
