"""The world is a data set: the same on every machine, in splits that do not mix, readable and writable."""

import hashlib
import json
import pickle
import random
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jrm_training.critique import parse_critique
from jrm_training.data import Group, read_groups, write_groups
from jrm_training.world import HELD_OUT, World

DIMENSIONS = ("instruction_following", "visual_quality")
HELD_OUT_NAMES = [f"{colour} {kind}" for colour, kind in HELD_OUT]

splits = st.sampled_from(["train", "test", "unseen"])
seeds = st.integers(0, 2**63)


def words(group: Group) -> str:
    """All that a group says: instruction, labels and critiques."""
    return json.dumps([group.instruction, [[dict(edit.labels), dict(edit.critiques)] for edit in group.edits]])


def images(group: Group) -> list[Image.Image]:
    return [group.source, *(edit.image for edit in group.edits)]


def test_the_texts_of_a_group_can_be_had_without_its_pictures():
    world = World(20, seed=3, two_sources=0.5)
    for number, group in enumerate(world):
        assert world.texts(number) == [group.instruction, *(t for edit in group.edits for t in edit.critiques.values())]
    with pytest.raises(IndexError, match="group 20 of 20"):
        world.texts(20)


@pytest.mark.parametrize(
    ("split", "digest"),
    [("train", "d18111369a749689"), ("test", "cbf91fc3ad98615c"), ("unseen", "ef10502a8f1f23ca")],
)
def test_the_words_are_these_on_every_machine(split, digest):
    groups = World(25, seed=7, split=split, edits=6)
    assert hashlib.sha256("\n".join(map(words, groups)).encode()).hexdigest()[:16] == digest


def test_the_pictures_are_these_on_every_machine():
    """Mean colours of three sources, each with an edit, with a tolerance for versions of pillow."""
    groups = World(3, seed=7, edits=2)
    means = [[np.asarray(image).mean(axis=(0, 1)) for image in images(group)[:2]] for group in groups]
    expected = [
        [(194.4, 193.7, 193.0), (177.7, 176.4, 196.1)],
        [(247.1, 251.7, 247.3), (251.4, 251.3, 251.5)],
        [(227.2, 225.4, 198.9), (214.8, 228.7, 210.9)],
    ]
    assert [group.source.size for group in groups] == [(128, 128), (128, 128), (96, 96)]
    np.testing.assert_allclose(means, expected, atol=0.5)


@given(splits, seeds)
@settings(max_examples=10, deadline=None)
def test_a_group_depends_on_its_index_and_not_on_how_many_there_are(split, seed):
    few, many = World(5, seed, split, edits=2), World(50, seed, split, edits=2)
    assert few[2] == many[2] == few[-3]


@given(seeds)
@settings(max_examples=10, deadline=None)
def test_seeds_splits_and_indices_are_streams_of_their_own(seed):
    drawn = [World(2, seed + n, split, edits=1) for n in (0, 1) for split in ("train", "test", "unseen")]
    sources = [group.source.tobytes() for world in drawn for group in world]
    assert len(set(sources)) == len(sources)


@given(st.sampled_from(["train", "test"]), seeds)
@settings(max_examples=30, deadline=None)
def test_what_is_held_out_is_never_mentioned(split, seed):
    text = words(World(1, seed, split, edits=6)[0])
    assert not any(name in text for name in HELD_OUT_NAMES)


@given(seeds)
@settings(max_examples=30, deadline=None)
def test_every_unseen_task_features_what_is_held_out(seed):
    group = World(1, seed, "unseen", edits=6)[0]
    right = [edit for edit in group.edits if edit.labels["instruction_following"] == 4]
    assert any(name in group.instruction + right[0].critiques["instruction_following"] for name in HELD_OUT_NAMES)


@given(splits, seeds)
@settings(max_examples=25, deadline=None)
def test_groups_are_whole(split, seed):
    group = World(1, seed, split, edits=7)[0]
    assert len(group.edits) == 7
    assert {(image.mode, image.size) for image in images(group)} == {("RGB", group.source.size)}
    for edit in group.edits:
        assert set(edit.labels) == set(edit.critiques) == set(DIMENSIONS)
        assert set(edit.labels.values()) <= {1, 2, 3, 4}
        parse_critique(edit.critiques["instruction_following"], regions=True)
        parse_critique(edit.critiques["visual_quality"], regions=False)


@given(seeds)
@settings(max_examples=25, deadline=None)
def test_a_clean_edit_in_which_nothing_changed_is_the_source(seed):
    group = World(1, seed, edits=6, flawed=0)[0]
    for edit in group.edits:
        same = edit.image.tobytes() == group.source.tobytes()
        assert same == ("nothing was changed" in edit.critiques["instruction_following"])


def test_edits_of_one_group_differ_in_quality_before_they_repeat():
    """As many different verdicts as fit: what a ranking can be learned from. A crowded scene may lack room for one."""
    world = World(100, seed=5, edits=4)
    verdicts = [{edit.critiques["instruction_following"].split(".")[0] for edit in group.edits} for group in world]
    assert sum(len(found) == 4 for found in verdicts) >= 95
    assert min(map(len, verdicts)) >= 3


def test_labels_are_balanced():
    edits = [edit for group in World(50, edits=6) for edit in group.edits]
    for dimension in DIMENSIONS:
        counts = Counter(edit.labels[dimension] for edit in edits)
        assert set(counts) == {1, 2, 3, 4}
        assert min(counts.values()) > 0.1 * len(edits)


@pytest.mark.parametrize("flawed", [0.0, 0.5, 1.0])
def test_the_share_of_flawed_edits_is_what_was_asked_for(flawed):
    labels = [edit.labels["visual_quality"] for group in World(50, edits=4, flawed=flawed) for edit in group.edits]
    assert np.mean([label < 4 for label in labels]) == pytest.approx(flawed, abs=0.12 if flawed == 0.5 else 0)


@pytest.mark.parametrize("shapes", [(1, 1), (2, 4), (5, 5)])
def test_the_number_of_shapes_is_bounded(shapes):
    for group in World(10, edits=6, shapes=shapes, flawed=0):
        [unchanged, *_] = [edit for edit in group.edits if edit.image.tobytes() == group.source.tobytes()]
        seen = json.loads(unchanged.critiques["visual_quality"])["reasoning"].partition("Seen: ")[2]
        assert shapes[0] <= len(seen.split(", ")) <= shapes[1]


def test_sizes_and_formats_vary():
    sizes = [group.source.size for group in World(100, edits=1)]
    assert {min(size) for size in sizes} == {64, 96, 128, 192, 256}
    assert {round(width / height, 1) for width, height in sizes} == {0.7, 1.0, 1.3}


def test_what_is_written_is_read_back_equal(tmp_path):
    groups = World(6, edits=3)
    path = write_groups(tmp_path / "world.jsonl", groups)
    assert list(read_groups(path, DIMENSIONS)) == list(groups)


def test_a_slice_is_a_list_of_groups():
    world = World(6, edits=2)
    assert world[1:5:2] == [world[1], world[3]]
    assert world[-2:] == [world[4], world[5]]
    assert len(world) == len(list(world)) == 6


@pytest.mark.parametrize("index", [3, -4, 100])
def test_an_index_outside_is_an_error(index):
    with pytest.raises(IndexError, match=f"group {index} of 3"):
        World(3)[index]


def test_a_world_can_be_pickled():
    world = World(4, 2, "unseen", edits=3, shapes=(1, 2), flawed=0.1)
    again = pickle.loads(pickle.dumps(world))
    assert again == world
    assert again[1] == world[1]
    assert len(pickle.dumps(world)) < 1000


def test_the_global_random_numbers_are_left_alone():
    random.seed(3)
    np.random.seed(3)
    World(3)[:]
    drawn = random.random(), np.random.rand()
    random.seed(3)
    np.random.seed(3)
    assert drawn == (random.random(), np.random.rand())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"groups": -1}, "groups is -1, must be at least 0"),
        ({"split": "moon"}, "split is 'moon', must be one of train, test, unseen"),
        ({"edits": 0}, "edits is 0, must be at least 1"),
        ({"shapes": (3, 2)}, "shapes is (3, 2), must be (fewest, most) within 0 and 6"),
        ({"shapes": (1, 7)}, "shapes is (1, 7), must be (fewest, most) within 0 and 6"),
        ({"flawed": 1.5}, "flawed is 1.5, must be between 0 and 1"),
    ],
)
def test_a_world_that_could_not_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        World(**{"groups": 1, **fields})
