"""What is measured in process: every figure there, and every batch scored rightly."""

import math

import pytest

from jrm_service.bench.direct import score_together
from jrm_service.bench.engine import Measured, Plan, measure_engine
from jrm_service.bench.pictures import Pictures, prepare
from jrm_service.model.checkpoint_source import open_source
from support import checkpoints

PLAN = Plan(edits=3, side=64, rounds=1, seconds=0.02, sizes=(1, 3))


@pytest.fixture(autouse=True)
def a_step_is_small(monkeypatch):
    """Operations of a batch are counted, which takes seconds for the paper's 288 candidates."""
    monkeypatch.setattr("jrm_service.bench.engine._STEP_CANDIDATES", 12)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    path = checkpoints.write(tmp_path_factory.mktemp("engine"), checkpoints.two_passes())
    source = open_source(path, ["cpu"], "float32", "trie")
    return source, source.load()[1][0]


def test_every_figure_is_there(loaded):
    steps = []
    figures = measure_engine(*loaded, PLAN, steps.append)
    rates = [figures.rate, figures.share, figures.matrix_product, figures.one_ms, figures.group_ms]
    rates += [*figures.sizes.values(), *figures.sizes_share.values()]
    assert all(math.isfinite(rate) and rate > 0 for rate in rates)
    assert list(figures.sizes) == [1, 3]
    assert figures.batch_groups * 3 <= PLAN.step_candidates
    assert len(steps) == 5 + PLAN.rounds


def test_a_checkpoint_without_a_source_is_measured_on_groups_without_one(tmp_path):
    path = checkpoints.write(tmp_path, checkpoints.no_source())
    source = open_source(path, ["cpu"], "float32", "trie")
    backend = source.load()[1][0]
    assert Measured(source, backend, PLAN).fresh(1, 2)[0].sources == ()
    assert math.isfinite(measure_engine(source, backend, PLAN, lambda _step: None).rate)


def test_batches_that_overlap_keep_their_order(loaded):
    source, backend = loaded
    batches = [prepare(source.preparer, Pictures(64, seed=seed).groups(2, 3)) for seed in range(3)]
    scores = Measured(source, backend, PLAN).score(batches)
    expected = [reward for batch in batches for reward in score_together(backend, batch)]
    assert [score.reward for score in scores] == pytest.approx(expected, abs=1e-6)


def test_no_two_pictures_are_alike():
    groups = Pictures(64).groups(3, 2)
    images = {image.tobytes() for group in groups for image in (group.source, *group.edits)}
    assert len(images) == 9
    assert groups[0].source.size == (64, 64)
    assert Pictures(100, seed=1).group(1).source.size == (100, 100)
