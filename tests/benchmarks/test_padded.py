"""The padded baseline is a fair one: it gives the right scores, whatever it pads."""

import pytest
import torch
from benchmarks.padded import PaddedScorer

from jrm_service.bench.direct import score_alone, score_together
from jrm_service.model.checkpoint import open_checkpoint
from jrm_service.model.scorer import PlainScorer
from jrm_service.scoring.preparing import CheckpointPreparer
from support import checkpoints
from support.pictures import photo


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_padding_changes_no_score(tmp_path, batch_size):
    checkpoint = open_checkpoint(checkpoints.write(tmp_path, checkpoints.two_passes()))
    preparer = CheckpointPreparer(checkpoint)
    images = [preparer.image(photo(*size, seed=n)) for n, size in enumerate([(96, 80), (40, 200), (210, 190)])]
    candidates = [preparer.candidate([images[0]], images[n % 3], "make it red " * (n + 1)) for n in range(4)]
    plain = PlainScorer(checkpoint, "cpu", torch.float32)
    padded = PaddedScorer(checkpoint, "cpu", torch.float32, batch_size)
    assert score_together(padded, candidates) == pytest.approx(score_alone(plain, candidates), abs=1e-5)
