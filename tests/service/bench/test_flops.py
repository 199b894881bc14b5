"""Counted work of the engine. The table of the 8B shape is pinned in tests/benchmarks/test_work.py."""

import pytest
import torch

from jrm_service.bench.device import linear_shapes, matrix_product_rate
from jrm_service.bench.flops import WorkCounter
from jrm_service.bench.pictures import Pictures, prepare
from jrm_service.model.checkpoint import open_checkpoint
from jrm_service.scoring.preparing import CheckpointPreparer
from support import checkpoints


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return open_checkpoint(checkpoints.write(tmp_path_factory.mktemp("flops"), checkpoints.two_passes()))


def test_what_is_shared_is_counted_once(checkpoint):
    counter = WorkCounter(checkpoint.config, checkpoint.image_spec)
    preparer, pictures = CheckpointPreparer(checkpoint), Pictures(64)
    alone = counter.packed(prepare(preparer, pictures.groups(1, 1)))
    shared, apart = (
        counter.packed(prepare(preparer, groups)) for groups in (pictures.groups(1, 4), pictures.groups(4, 1))
    )
    assert (alone.encodings, shared.encodings, apart.encodings) == (2, 5, 8)
    assert shared.tokens < apart.tokens < 4 * alone.tokens  # every sequence begins in the same way
    assert apart.vision_flops == 4 * alone.vision_flops
    assert shared.flops < apart.flops


def test_the_matrix_product_has_the_shapes_of_the_language_model(checkpoint):
    text = checkpoint.config.text_config
    shapes = linear_shapes(checkpoint.config)
    assert shapes.total() == 7 * text.num_hidden_layers  # q, k, v, o, gate, up, down
    assert shapes[text.intermediate_size, text.hidden_size] == text.num_hidden_layers
    assert matrix_product_rate("cpu", torch.float32, shapes, tokens=16, seconds=0.01) > 0
