"""Scores candidates with a backend in this process: one at a time, or all in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jrm_service.errors import CandidateError
from jrm_service.scoring.backend import Backend
from jrm_service.scoring.types import Candidate, Score


def score_alone(backend: Backend[Any], candidates: Sequence[Candidate]) -> list[float]:
    """Rewards in order, one candidate at a time. Raises as ``finite_scores`` does."""
    return [reward for candidate in candidates for reward in score_together(backend, [candidate])]


def score_together(backend: Backend[Any], candidates: Sequence[Candidate]) -> list[float]:
    """Rewards in order, all candidates in one call. Raises as ``finite_scores`` does."""
    return [score.reward for score in finite_scores(backend.score(backend.collate(candidates)).outcomes)]


def finite_scores(outcomes: Sequence[Score | CandidateError]) -> list[Score]:
    """The scores. Raises RuntimeError if any candidate has no finite one: the speed of wrong work means nothing."""
    scores = [outcome for outcome in outcomes if isinstance(outcome, Score) and outcome.finite]
    if len(scores) != len(outcomes):
        raise RuntimeError(f"{len(outcomes) - len(scores)} of {len(outcomes)} candidates have no finite score")
    return scores
