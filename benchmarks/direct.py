"""Candidates through a backend in this process: alone, or as many at a time as it likes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jrm_service.scoring.backend import Backend
from jrm_service.scoring.types import Candidate, Score


def score_alone(backend: Backend[Any], candidates: Sequence[Candidate]) -> list[float]:
    """Rewards in order, one candidate at a time."""
    return [reward for one in candidates for reward in score_together(backend, [one])]


def score_together(backend: Backend[Any], candidates: Sequence[Candidate]) -> list[float]:
    """Rewards in order, all candidates in one call. Raises RuntimeError if any of them has no finite score."""
    outcomes = backend.score(backend.collate(candidates)).outcomes
    scores = [outcome for outcome in outcomes if isinstance(outcome, Score) and outcome.finite]
    if len(scores) != len(outcomes):
        raise RuntimeError(f"{type(backend).__name__}: {len(outcomes) - len(scores)} candidates have no score")
    return [score.reward for score in scores]
