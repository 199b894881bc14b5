"""What every family of backbones must keep: it scores as transformers' own forward does, alone and in any company.

A new family is tested by being in the registry, and in ``tiny_shapes``.
"""

import pytest
import torch

from jrm_service.model import engine as engine_module
from jrm_service.model.attention import IMAGE_ATTENTION
from jrm_service.model.checkpoint import open_checkpoint
from jrm_service.model.engine import TrieScorer
from jrm_service.model.families import FAMILIES
from jrm_service.model.scorer import PlainScorer
from jrm_service.model.varlen import one_by_one
from jrm_service.scoring.preparing import CheckpointPreparer
from support import checkpoints
from support.cases import each
from support.pictures import photo
from support.reference import Reference

REFERENCE, PLAIN, COMPANY = 1e-4, 1e-4, 1e-5
# Pixels: no token is whole; sides of whole windows (224 = 2 windows of 4 tokens of 28); thin; one pixel; large.
SIZES = [(96, 80), (224, 224), (300, 40), (40, 200), (1, 1), (336, 112), (511, 389)]
PICTURES = [photo(*size, seed=n) for n, size in enumerate(SIZES)]
POSITIONS = ("mrope", "sequential")
LAYOUTS = {
    "two passes": checkpoints.two_passes,
    "prompt first": checkpoints.prompt_first,
    "no source": lambda: checkpoints.without_source(checkpoints.two_passes()),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module", params=POSITIONS)
def positions(request):
    return request.param


@pytest.fixture(scope="module", params=LAYOUTS)
def path(request, family, positions, tmp_path_factory):
    manifest = LAYOUTS[request.param]() | {"positions": positions}
    return checkpoints.write(tmp_path_factory.mktemp("family"), manifest, family=family, tied=False)


@pytest.fixture(scope="module")
def checkpoint(path):
    return open_checkpoint(path)


@pytest.fixture(scope="module")
def candidates(checkpoint):
    """Groups of two sources and every size, in the order of ``PICTURES``, and a few instructions."""
    preparer = CheckpointPreparer(checkpoint)
    images = [preparer.image(picture) for picture in PICTURES]
    return [
        preparer.candidate([images[n % 2]][: preparer.max_sources], edited, instruction)
        for n, edited in enumerate(images)
        for instruction in ("make it red", "把它变成蓝色")
    ]


def score(scorer, candidates):
    return scorer.score(scorer.collate(candidates)).outcomes


@pytest.fixture(scope="module")
def plain(checkpoint, candidates):
    """What the plain scorer makes of them."""
    return score(PlainScorer(checkpoint, "cpu", torch.float32), candidates)


def numbers(outcome):
    dimensions = [number for d in outcome.dimensions.values() for number in (d.mean, d.std)]
    return [outcome.reward, outcome.reward_std, *dimensions]


def assert_close(ours, theirs, tolerance):
    for mine, other in zip(ours, theirs, strict=True):
        assert numbers(mine) == pytest.approx(numbers(other), abs=tolerance)


def test_the_plain_scorer_is_the_stock_forward(path, candidates, plain):
    reference = Reference(path)
    for n, outcome in enumerate(plain):
        theirs = reference.score(PICTURES[n // 2 % 2], PICTURES[n // 2], candidates[n].instruction)
        wanted = [number for pair in theirs["dimensions"].values() for number in pair]
        assert numbers(outcome) == pytest.approx([theirs["reward"], theirs["reward_std"], *wanted], abs=REFERENCE)


@pytest.mark.parametrize("kernel", [None, one_by_one], ids=["by shape", "one call"])
def test_the_trie_scores_as_the_plain_scorer_does_in_any_company(checkpoint, candidates, plain, kernel, monkeypatch):
    monkeypatch.setattr(engine_module, "find_kernel", lambda *_: kernel)
    trie = TrieScorer(checkpoint, "cpu", torch.float32)
    together = score(trie, candidates)
    assert_close(together, plain, PLAIN)
    trie.features.clear()
    alone = []
    for candidate in candidates:
        alone += score(trie, [candidate])
    assert_close(alone, together, COMPANY)


@pytest.mark.parametrize("family", FAMILIES)
def test_positions_are_part_of_a_score(tmp_path, family):
    """So that a test of one rule could not pass with the other."""
    scores = []
    for positions in POSITIONS:
        manifest = checkpoints.two_passes() | {"positions": positions}
        checkpoint = open_checkpoint(checkpoints.write(tmp_path / positions, manifest, family=family))
        preparer = CheckpointPreparer(checkpoint)
        images = [preparer.image(picture) for picture in PICTURES[:2]]
        scores += score(
            PlainScorer(checkpoint, "cpu", torch.float32), [preparer.candidate(images[:1], images[1], "make it red")]
        )
    assert abs(scores[0].reward - scores[1].reward) > 100 * REFERENCE


@each("size", [PICTURES[0], PICTURES[1]], ids=["partial windows", "whole windows"])
def test_windows_are_part_of_a_score(tmp_path_factory, size):
    """A tower whose blocks all see the whole image is another model, and so would be one that sees windows only."""
    checkpoint = open_checkpoint(
        checkpoints.write(tmp_path_factory.mktemp("windows"), checkpoints.one_pass(), family="qwen2_5_vl")
    )
    trie = TrieScorer(checkpoint, "cpu", torch.float32)
    image = CheckpointPreparer(checkpoint).image(size)
    candidate = CheckpointPreparer(checkpoint).candidate([image], image, "make it red")
    (right,) = score(trie, [candidate])
    blocks = trie._model.visual.blocks
    assert [block.attn.config._attn_implementation != IMAGE_ATTENTION for block in blocks] == [True, False, True]
    windowed = blocks[0].attn.config
    for config in (trie._model.visual.config, windowed):
        for block in blocks:
            block.attn.config = config
        trie.features.clear()
        (wrong,) = score(trie, [candidate])
        assert abs(wrong.reward - right.reward) > 10 * PLAIN


def test_nothing_of_a_family_is_read_back_from_the_device(checkpoint, candidates):
    """On the meta device whatever asks for a number raises: as if it were waited for for ever."""
    from jrm_service.model.rows import PackedModel, pack
    from jrm_service.model.weights import empty_model

    for kernel in (None, one_by_one):
        model = PackedModel(empty_model(checkpoint.config).eval(), checkpoint.image_spec, kernel)
        row = pack(
            [sequence.segments for candidate in candidates for sequence in candidate.sequences],
            factor=checkpoint.image_spec.factor,
            image_token_id=checkpoint.config.image_token_id,
            position_rule=checkpoint.manifest.positions,
            kernel=kernel,
        )
        images = row.distinct_images
        with torch.inference_mode():
            features = model.vision.encode([model.vision.inputs(image.pixels) for image in images.values()])
            hidden = model.hidden_states(row.to("meta"), dict(zip(images, features, strict=True)))
        assert hidden.shape == (len(row.ids), checkpoint.hidden_size)
