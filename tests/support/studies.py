"""Run folders and study documents for tests."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from studies.curves import curves
from studies.representation import represent

from jrm_service.scoring.types import Dimension, Score
from jrm_training.evaluate import ScoredGroup, make_report
from jrm_training.evaluate_report import to_json
from jrm_training.evaluate_scorers import FakeScorer
from support import checkpoints

DIMENSIONS = ("instruction_following", "visual_quality")


def recipe(alpha: float, **changes: Any) -> dict[str, Any]:
    data = {"seed": 1, "edits": 5, "curriculum": [{"groups": 8}, {"groups": 12}]}
    return {"name": f"alpha {alpha}", "alpha": alpha, "epochs": 1, "batch": 4, "data": data, **changes}


def steps(alpha: float, count: int) -> list[dict[str, Any]]:
    """A log whose losses fall."""
    return [
        {
            "step": step,
            "rank": 0.5 + 0.2 / step,
            "language": 3.0 / step if alpha else 0.0,
            "gradient_norm": 2.0 / step,
            "accuracy": dict.fromkeys(DIMENSIONS, 1 - 0.5 / step),
        }
        for step in range(1, count + 1)
    ]


def run_folder(
    path: Path, alpha: float, *, seed: int = 0, layout: dict[str, Any] | None = None, **changes: Any
) -> Path:
    """A run of five steps as ``jrm train`` leaves it, with random weights; ``changes`` are to the recipe."""
    provenance = {"recipe": recipe(alpha, **changes), "steps": 5, "groups": 20, "start": "s"}
    source = (layout or checkpoints.two_passes()) | {"provenance": provenance}
    path.mkdir()
    checkpoints.write(path / "checkpoint", source, seed=seed)
    (path / "log.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps(alpha, 5)))
    return path


def document(*alphas: float, groups: int = 6, points: int = 40) -> dict[str, Any]:
    """A study whose runs are the better the larger their alpha is, of the form that ``study.measure`` gives."""
    random = np.random.default_rng(0)
    labels = random.integers(1, 5, (groups, 4, 2))
    h = random.normal(size=(points, 8)) * np.geomspace(8, 0.1, 8)
    spreads = represent([{"pass one": h * (1 + a), "all passes": h**3 * (1 + a)} for a in alphas])
    runs: list[dict[str, Any]] = []
    for alpha, spread in zip(alphas, spreads, strict=True):
        judged = [_judged(of_group, random.normal(size=of_group.shape) * (1.5 - alpha)) for of_group in labels]
        report = to_json(make_report(judged, FakeScorer(lambda _: (), dimensions=DIMENSIONS), draws=50))
        figures = {"critique_valid": _estimate(0.9), "verdict_right": _estimate(0.8)}
        told = report | {"critiques": dict.fromkeys(DIMENSIONS, figures) if alpha else {}}
        gain = {"pairwise_accuracy": _estimate(0.125), "pick_of_group": _estimate(-0.25)}
        gains = {split: dict.fromkeys((*DIMENSIONS, "reward"), gain) for split in ("test", "unseen")}
        runs.append(
            {
                "name": "run",
                "alpha": alpha,
                "steps": 1234,
                "fingerprint": "f" * 32,
                "splits": {"test": told, "unseen": report},
                "gain": gains if alpha > min(alphas) else {},
                "representation": spread,
                "curves": curves(steps(alpha, 300)) | {"stages": [100.0]},
            }
        )
    plan = {"groups": groups, "edits": 4, "critiques": 8, "seed": 0}
    return {"format": "jrm-study/1", "plan": plan, "differences": {}, "runs": runs}


def _judged(labels: Any, noise: Any) -> ScoredGroup:
    """Scores that are the labels and some noise."""
    scores = [
        Score(
            float(mean.mean()), 0.5, {name: Dimension(float(m), 0.5) for name, m in zip(DIMENSIONS, mean, strict=True)}
        )
        for mean in labels + noise
    ]
    ranking = {name: tuple(map(float, of)) for name, of in zip(DIMENSIONS, labels.T, strict=True)}
    return ScoredGroup(ranking, frozenset(), ({},) * len(labels), tuple(scores))


def _estimate(value: float) -> dict[str, Any]:
    return {"value": value, "low": value - 0.05, "high": value + 0.05, "count": 8, "groups": 2, "chance": None}
