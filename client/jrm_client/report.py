"""Scores for people (a table) and for programs (JSON without NaN)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from .results import Score
from .terminal import literal


def to_json(score: Score) -> dict[str, Any]:
    """Return a score as JSON values, in the words of the HTTP contract. One that failed has its error and no number."""
    if score.error is not None:
        return {"status": "error", "error": {"code": score.error.code, "message": score.error.message}}
    return {
        "status": "ok",
        "reward": score.reward,
        "reward_std": score.reward_std,
        **({} if score.normalized is None else {"normalized": score.normalized}),
        "dimensions": {name: {"mean": d.mean, "std": d.std} for name, d in score.dimensions.items()},
        "model": score.model,
        "fingerprint": score.fingerprint,
        "precision": score.precision,
    }


def table(names: Sequence[str], scores: Sequence[Score]) -> Table:
    """Return a table with a row for each candidate: its reward, normalized too where it is, and its dimensions."""
    scored = [score for score in scores if score.error is None]
    dimensions = list(scored[0].dimensions) if scored else []
    caption = f"{scored[0].model} · {scored[0].fingerprint[:16]}" if scored else None
    grid = Table("edited", caption=caption, caption_justify="left")
    scaled = any(score.normalized is not None for score in scored)
    for heading in ("reward", *(["normalized"] if scaled else []), *dimensions):
        grid.add_column(heading, justify="right")
    for name, score in zip(names, scores, strict=True):
        if score.error is None:
            cells = [_number(score.reward, score.reward_std)]
            cells += [] if score.normalized is None else [_number(score.normalized, None)]
            cells += [_number(score.dimensions[d].mean, score.dimensions[d].std) for d in dimensions]
            grid.add_row(Text(literal(name)), *cells)
        else:
            grid.add_row(Text(literal(name)), Text(f"{score.error.code}: {score.error.message}", style="red"))
    return grid


def _number(mean: float, std: float | None) -> Text:
    return Text(f"{mean:.4f}" if std is None else f"{mean:.4f} ± {std:.4f}")
