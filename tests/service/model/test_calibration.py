"""``jrm calibrate``: what is fitted, what is refused, and what becomes of the checkpoint."""

import json
import math
import random

import pytest
import typer
from typer.testing import CliRunner

from jrm_service.calibrate_command import calibrate
from jrm_service.model import golden, golden_recording
from jrm_service.model.calibration import FEWEST, fit
from jrm_service.model.checkpoint import open_checkpoint
from jrm_service.scoring.types import Scale
from support import checkpoints

RANDOM = random.Random(7)
REWARDS = [RANDOM.gauss(3.0, 2.0) for _ in range(201)]


def command(checkpoint, scores, *more):
    app = typer.Typer()
    app.command()(calibrate)
    return CliRunner().invoke(app, ["--checkpoint", str(checkpoint), "--scores", str(scores), *more])


@pytest.fixture
def checkpoint(tmp_path):
    return checkpoints.write(tmp_path / "checkpoint", checkpoints.one_pass())


def scores_of(path, fingerprint, rewards=REWARDS):
    rows = [{"status": "ok", "reward": reward, "fingerprint": fingerprint} for reward in rewards]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_median_becomes_a_half_and_the_quartiles_a_quarter_and_three():
    evenly = [float(n) for n in range(401)]
    fitted = fit(evenly).scale
    assert [fitted.normalized(value) for value in (100.0, 200.0, 300.0)] == pytest.approx([0.25, 0.5, 0.75], abs=1e-4)


def test_a_few_broken_edits_do_not_move_the_scale():
    clean, spoilt = fit(REWARDS).scale, fit([*REWARDS, -1e6, -1e6]).scale
    assert spoilt.scale == pytest.approx(clean.scale, rel=0.1)
    assert spoilt.center == pytest.approx(clean.center, abs=0.1)


def test_normalizing_is_a_sigmoid_that_never_overflows():
    scale = Scale(1.0, 2.0)
    for reward in (-3.0, 0.0, 1.0, 4.5):
        assert scale.normalized(reward) == pytest.approx(1 / (1 + math.exp(-(reward - 1.0) / 2.0)))
    assert scale.normalized(-1e308) == 0.0
    assert scale.normalized(1e308) == 1.0


@pytest.mark.parametrize("rewards", [REWARDS[: FEWEST - 1], [1.0] * 300, [1.0] * 300 + [2.0] * 20])
def test_what_says_nothing_of_a_scale_is_refused(rewards):
    with pytest.raises(ValueError, match=r"a scale is fitted on|no scale to be fitted"):
        fit(rewards)


def test_the_manifest_gets_the_scale_and_the_fingerprint_changes(checkpoint, tmp_path):
    before = open_checkpoint(checkpoint)
    golden_recording.record(before, golden_recording.drawn_examples()[:1], device="cpu")
    scores = scores_of(tmp_path / "scores.jsonl", before.fingerprint)
    result = command(checkpoint, scores)
    assert result.exit_code == 0, result.output
    after = open_checkpoint(checkpoint)
    assert before.fingerprint in result.output
    assert after.fingerprint in result.output
    assert after.fingerprint != before.fingerprint
    normalize = after.manifest.reward.normalize
    assert (normalize.center, normalize.scale) == (fit(REWARDS).scale.center, fit(REWARDS).scale.scale)
    golden.require_fingerprint(golden.read(after), after)  # the golden scores are raw, and stay right
    again = command(checkpoint, scores)  # scores of the time before it was calibrated
    assert again.exit_code == 0, again.output
    assert open_checkpoint(checkpoint).fingerprint == after.fingerprint


def test_a_dry_run_changes_nothing(checkpoint, tmp_path):
    before = {path: path.read_bytes() for path in checkpoint.rglob("*") if path.is_file()}
    scores = scores_of(tmp_path / "scores.jsonl", open_checkpoint(checkpoint).fingerprint)
    result = command(checkpoint, scores, "--dry-run")
    assert result.exit_code == 0
    assert "center" in result.output
    assert {path: path.read_bytes() for path in checkpoint.rglob("*") if path.is_file()} == before


def test_scores_of_another_checkpoint_and_other_files_are_refused_by_line(checkpoint, tmp_path):
    file = tmp_path / "scores.jsonl"
    own = open_checkpoint(checkpoint).fingerprint
    for text, told in (
        ("", "0 scores"),
        ('{"reward": 1.0, "fingerprint": "other"}\n', "scores.jsonl:1: a score of other"),
        (f'{{"reward": true, "fingerprint": "{own}"}}\n', "scores.jsonl:1: no reward"),
        (f'\n{{"fingerprint": "{own}"}}\n', "scores.jsonl:2: no reward"),
        ("no JSON\n", "scores.jsonl:1: not JSON"),
    ):
        file.write_text(text)
        result = command(checkpoint, file)
        assert result.exit_code == 1
        assert told in result.output, (text, result.output)
    assert command(checkpoint, tmp_path / "nothing").exit_code == 1
