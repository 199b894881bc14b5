"""Evaluation of a reward model on preference data: every group scored once, then figures with confidence intervals."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from jrm_service.scoring.types import Score

from .bootstrap import DRAWS, LEVEL, Array, CalibrationError, Estimate, estimates
from .critique import critique_tallies
from .data import Group
from .evaluate_results import Failed, Outcome, ResultsFile, inputs_hash
from .evaluate_scorers import GroupScorer, Pooling
from .metrics import Bin, Rated, reliability, tallies


@dataclass(frozen=True, slots=True)
class ScoredGroup:
    """A scored group: for each edit the outcome, its true critiques and, by dimension, the number that ranks it.

    ``ranking`` has NaN where there is no label. ``preferred`` names the dimensions in which the ranking comes from a
    preference, so that its numbers are no labels and cannot be pooled.
    """

    ranking: Mapping[str, tuple[float, ...]]
    preferred: frozenset[str]
    critiques: tuple[Mapping[str, str], ...]
    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True, slots=True)
class OutputReport:
    """The figures of one output: a dimension or the pooled reward. ``labelled`` counts the edits with a label."""

    labelled: int
    figures: Mapping[str, Estimate]
    reliability: Sequence[Bin]


@dataclass(frozen=True, slots=True)
class Report:
    """What an evaluation found. ``failed`` counts edits without a score by error code; they are in no figure.

    ``dimensions`` are in the manifest's order. The true label of ``reward`` is the labels pooled by the manifest's
    rule; an edit that lacks one of them has none, and so have edits that are only known as preferred.
    ``critiques`` has the figures of generated critiques by dimension, where there were any. Intervals are at ``level``,
    from ``draws`` resamples of the groups.
    """

    model: str
    fingerprint: str
    groups: int
    edits: int
    failed: Mapping[str, int]
    dimensions: Mapping[str, OutputReport]
    reward: OutputReport
    critiques: Mapping[str, Mapping[str, Estimate]]
    level: float
    draws: int
    seed: int


def score_groups(
    groups: Sequence[Group],
    scorer: GroupScorer,
    results: ResultsFile,
    advance: Callable[[int, int], None] = lambda _done, _total: None,
) -> list[ScoredGroup]:
    """Score the groups that ``results`` lacks, append each as it comes, and return all in order.

    Groups of equal inputs are scored once. ``advance(done, total)`` is called after each group. What the scorer raises
    ends the run, with everything scored so far in ``results``. Raises EvaluationError if ``results`` has other inputs.
    """
    scored: list[ScoredGroup] = []
    waiting: deque[tuple[Group, Future[tuple[Outcome, ...]]]] = deque()

    def settle() -> None:
        group, future = waiting.popleft()
        scored.append(_scored_group(group, scorer.dimensions, future.result()))
        advance(len(scored), len(groups))

    by_inputs: dict[str, Future[tuple[Outcome, ...]]] = {}

    def repeat(index: int, inputs: str, first: Future[tuple[Outcome, ...]]) -> tuple[Outcome, ...]:
        outcomes = first.result()  # of a group that was submitted before this one
        results.append(index, inputs, outcomes)
        return outcomes

    def score(index: int, inputs: str, group: Group) -> tuple[Outcome, ...]:
        outcomes = tuple(scorer.score(group))
        if len(outcomes) != len(group.edits):  # no telling which score belongs to which edit
            raise RuntimeError(f"{len(outcomes)} outcomes for the {len(group.edits)} edits of group {index}")
        results.append(index, inputs, outcomes)
        return outcomes

    advance(0, len(groups))
    with ThreadPoolExecutor(scorer.concurrency, "jrm-evaluate") as pool:
        try:
            for index in range(len(groups)):
                group = groups[index]
                inputs = inputs_hash(group)
                known = results.get(index, inputs, len(group.edits))
                if known is not None:
                    future = _done(known)
                elif inputs in by_inputs:
                    future = pool.submit(repeat, index, inputs, by_inputs[inputs])
                else:
                    future = pool.submit(score, index, inputs, group)
                by_inputs.setdefault(inputs, future)
                waiting.append((group, future))
                if len(waiting) > 2 * scorer.concurrency:  # the next groups are decoded while these are scored
                    settle()
            while waiting:
                settle()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return scored


def make_report(
    scored: Sequence[ScoredGroup],
    scorer: GroupScorer,
    *,
    critiques: Sequence[Sequence[Mapping[str, str]]] | None = None,
    regions: Mapping[str, bool] | None = None,
    level: float = LEVEL,
    draws: int = DRAWS,
    seed: int = 0,
) -> Report:
    """Figures of scored groups, deterministic by ``seed``.

    ``critiques`` are generated ones: for each group one mapping (dimension -> text) for each edit, empty where none was
    generated (``critique.critique_tallies``); ``regions`` says for each dimension whether its critiques have boxes.
    """

    def output(rated: Sequence[Rated]) -> OutputReport:
        found = tallies(rated)
        calibration = found["calibration_error"]
        assert isinstance(calibration, CalibrationError)
        labelled = sum(int(np.isfinite(group.labels).sum()) for group in rated)
        return OutputReport(labelled, estimates(found, draws=draws, seed=seed, level=level), reliability(calibration))

    def critique(dimension: str) -> dict[str, Estimate]:
        true = [group.critiques for group in scored]
        found = critique_tallies(true, critiques or [], dimension, (regions or {}).get(dimension, False))
        return estimates(found, draws=draws, seed=seed, level=level)

    outcomes = [outcome for group in scored for outcome in group.outcomes]
    return Report(
        model=scorer.model,
        fingerprint=scorer.fingerprint,
        groups=len(scored),
        edits=len(outcomes),
        failed=dict(Counter(outcome.code for outcome in outcomes if isinstance(outcome, Failed)).most_common()),
        dimensions={name: output([rated(group, name) for group in scored]) for name in scorer.dimensions},
        reward=output([rated_reward(group, scorer.pooling) for group in scored]),
        critiques={} if critiques is None else {name: critique(name) for name in scorer.dimensions},
        level=level,
        draws=draws,
        seed=seed,
    )


def rated(group: ScoredGroup, dimension: str) -> Rated:
    """One dimension of a group for the metrics."""
    scores = [outcome.dimensions[dimension] if isinstance(outcome, Score) else None for outcome in group.outcomes]
    return Rated(
        labels=np.array(group.ranking[dimension], np.float64),
        means=np.array([math.nan if score is None else score.mean for score in scores], np.float64),
        stds=_stds([None if score is None else score.std for score in scores]),
    )


def rated_reward(group: ScoredGroup, pooling: Pooling) -> Rated:
    """The pooled reward of a group for the metrics; labels are pooled by the same rule."""
    scores = [outcome if isinstance(outcome, Score) else None for outcome in group.outcomes]
    return Rated(
        labels=_pooled_labels(group, pooling),
        means=np.array([math.nan if score is None else score.reward for score in scores], np.float64),
        stds=_stds([None if score is None else score.reward_std for score in scores]),
    )


def _pooled_labels(group: ScoredGroup, pooling: Pooling) -> Array:
    edits = len(group.outcomes)
    if len(pooling.weights) == 1:
        return np.array(group.ranking[next(iter(pooling.weights))], np.float64)
    if group.preferred & pooling.weights.keys():
        return np.full(edits, math.nan)
    labels = [pooling.label({name: group.ranking[name][edit] for name in pooling.weights}) for edit in range(edits)]
    return np.array([round(label, 9) for label in labels], np.float64)  # 0.1 + 0.2 and 0.3 are one label


def _stds(values: Sequence[float | None]) -> Array:
    return np.array([math.nan if value is None else value for value in values], np.float64)


def _scored_group(group: Group, dimensions: Sequence[str], outcomes: tuple[Outcome, ...]) -> ScoredGroup:
    return ScoredGroup(
        ranking={name: group.ranking(name) for name in dimensions},
        preferred=frozenset(group.preferences),
        critiques=tuple(edit.critiques for edit in group.edits),
        outcomes=outcomes,
    )


def _done(outcomes: tuple[Outcome, ...]) -> Future[tuple[Outcome, ...]]:
    future: Future[tuple[Outcome, ...]] = Future()
    future.set_result(outcomes)
    return future
