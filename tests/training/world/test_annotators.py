"""People who err: the same pictures and truth, other labels, and more disagreement where an edit is debatable."""

from random import Random

import numpy as np
import pytest

from jrm_training.world import World
from jrm_training.world.annotators import FOLLOWING_DOUBT, QUALITY_DOUBT, read

DIMENSIONS = ("instruction_following", "visual_quality")


def test_people_see_the_same_pictures_and_read_other_labels():
    truth, one, other = (World(3, edits=4, annotator=number) for number in (None, 0, 1))
    for true, of_one, of_other in zip(truth, one, other, strict=True):
        for edits in zip(true.edits, of_one.edits, of_other.edits, strict=True):
            assert len({edit.image.tobytes() for edit in edits}) == 1
            assert edits[0].critiques == edits[1].critiques == edits[2].critiques
            assert len({edit.labels["instruction_following"] for edit in edits}) == 3
    assert one[1] == World(5, edits=4, annotator=0)[1]


def test_they_are_right_on_average_and_differ_by_the_doubt():
    read = np.array(
        [[list(edit.labels.values()) for edit in World(1, edits=6, annotator=n, side=64)[0].edits] for n in range(300)]
    )
    truth = np.array([list(edit.labels.values()) for edit in World(1, edits=6)[0].edits])
    np.testing.assert_allclose(read.mean(axis=0), truth, atol=0.25)
    spread = read.std(axis=0)
    for quality, of_edit in zip(truth[:, 1], spread[:, 1], strict=True):
        assert of_edit == pytest.approx(QUALITY_DOUBT[int(quality)], rel=0.2)
    assert all(min(abs(of_edit / doubt - 1) for doubt in FOLLOWING_DOUBT.values()) < 0.2 for of_edit in spread[:, 0])


def test_annotators_agree_on_edits_that_are_far_apart_and_differ_on_close_ones():
    random = Random(0)

    def preferring(first, second):
        """Share of people who prefer the first of two edits, each a (label, doubt)."""
        return sum(read(*first, random) > read(*second, random) for _ in range(2000)) / 2000

    assert preferring((4, 0.25), (1, 0.15)) > 0.995
    assert preferring((3, 0.8), (2, 1.0)) == pytest.approx(0.78, abs=0.04)  # docs/synthetic-world.md
    assert preferring((2, 1.0), (2, 0.5)) == pytest.approx(0.5, abs=0.05)


def test_the_side_of_a_picture_can_be_chosen():
    usual, large = World(2, edits=3)[1], World(2, edits=3, side=320)[1]
    assert min(large.source.size) == 320
    assert [edit.labels for edit in large.edits] == [edit.labels for edit in usual.edits]
    with pytest.raises(ValueError, match="side is 32, must be at least 64"):
        World(1, side=32)
