"""The measured checkpoints: ordinary, with prompts as long as the paper's."""

import dataclasses

import pytest
from benchmarks.models import LAYOUTS, SIZES, cached_checkpoint, write_checkpoint
from PIL import Image

from jrm_service.model.checkpoint import open_checkpoint
from jrm_service.model.trie import build_trie
from jrm_service.scoring.preparing import CheckpointPreparer

INSTRUCTION = "make the red cup blue"


def candidates(path, edits: int):
    preparer = CheckpointPreparer(open_checkpoint(path))
    source, *edited = (preparer.image(Image.new("RGB", (448, 448), (shade, 0, 0))) for shade in range(edits + 1))
    return [preparer.candidate([source], edit, INSTRUCTION) for edit in edited]


@pytest.fixture(scope="module", params=LAYOUTS)
def layout(request, tmp_path_factory):
    """(layout, path) of prompts and images at full length over tiny weights."""
    size = dataclasses.replace(SIZES["mid"], text=None, vision=None)
    return request.param, write_checkpoint(tmp_path_factory.mktemp("benchmark"), request.param, size)


def test_sequences_are_as_long_as_the_papers(layout):
    name, path = layout
    (candidate,) = candidates(path, 1)
    text = [sequence.tokens - 2 * 196 for sequence in candidate.sequences]
    # About ten tokens are the chat template's.
    assert text == pytest.approx([30, 30] if name == "short" else [395, 372], abs=15)


def test_layouts_share_what_their_names_say(layout):
    name, path = layout
    group = candidates(path, 12)
    trie = build_trie([sequence.segments for one in group for sequence in one.sequences])
    share = trie.tokens / sum(one.tokens for one in group)
    low, high = {"paper": (0.6, 0.66), "short": (0.27, 0.33), "prompt first": (0.3, 0.36)}[name]
    assert low < share < high


def test_a_checkpoint_is_written_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = cached_checkpoint("tiny", "short")
    written = (first / "config.json").stat().st_mtime_ns
    assert cached_checkpoint("tiny", "short") == first
    assert (first / "config.json").stat().st_mtime_ns == written
    assert [path.name for path in (tmp_path / "jrm-serve").iterdir()] == [first.name]
