"""The untrained start of the tiny model: a checkpoint like any other, made for the synthetic world."""

import pytest
import torch
from transformers import AutoTokenizer

from jrm_service.model.checkpoint_source import open_source
from jrm_training.batch import Collator
from jrm_training.init_checkpoint import REGION_TOKENS
from jrm_training.tiny import write_start
from jrm_training.world import World


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return write_start(tmp_path_factory.mktemp("tiny") / "folder" / "start")


def test_it_is_served(start):
    model, _ = open_source(start.path, ["cpu"], "float32", "trie").load()
    assert model.name == "jrm-tiny"


def test_it_fits_into_the_package_in_bfloat16(start):
    assert 2 * start.parameters < 12e6


def test_its_tokens_read_back_as_the_worlds_own_words(start):
    tokenizer = AutoTokenizer.from_pretrained(start.path)
    collator = Collator(start)
    for group in World(3, seed=1):
        for text in [group.instruction, *(t for edit in group.edits for t in edit.critiques.values())]:
            ids = collator.critique_ids(text)
            assert tokenizer.decode(ids[:-1]) == text
            assert len(ids) < len(text) / 2  # words, not letters


def test_every_region_tag_is_a_token(start):
    collator = Collator(start)
    assert all(len(collator.critique_ids(token)) == 2 for token in REGION_TOKENS)


def test_a_group_of_the_world_makes_a_short_row(start):
    group = World(1, seed=2, edits=5)[0]
    row = Collator(start).row([group])
    assert all(image.pixels.size <= 3 * 64 * 64 for image in row.packed.images)  # whatever the drawing's size
    assert len(row.packed.ids) < 1500


def test_a_start_that_is_there_is_left_alone(start):
    file = start.path / "model.safetensors"
    before = file.stat().st_mtime_ns
    again = write_start(start.path, seed=5)
    assert file.stat().st_mtime_ns == before
    assert again.fingerprint == start.fingerprint
    assert [path.name for path in start.path.parent.iterdir()] == ["start"]


def test_the_callers_random_numbers_are_its_own(start, tmp_path):
    """Weights come from a stream of their own: the global one neither decides them nor is moved by them."""
    torch.manual_seed(123)
    expected = torch.rand(1)
    torch.manual_seed(123)
    again = write_start(tmp_path / "again")
    assert torch.rand(1) == expected
    assert again.fingerprint == start.fingerprint
