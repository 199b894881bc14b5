"""Where an evaluation gets its scores: a backend in this process, a running server, or a fake for tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from jrm_client import APIStatusError, JRMClient
from jrm_service.errors import CandidateError, InvalidRequest
from jrm_service.scoring.backend import Backend, BatchResult, Preparer, WorkerLost
from jrm_service.scoring.outcomes import checked_results
from jrm_service.scoring.preparing import sources_problem
from jrm_service.scoring.types import Candidate, Dimension, Image, Score, combine

from .data import Edit, Group
from .evaluate_results import EvaluationError, Failed, Outcome

_REFUSALS_OF_ONE_GROUP = frozenset({400, 413})


@dataclass(frozen=True, slots=True)
class Pooling:
    """How a checkpoint pools dimensions into one reward: the manifest's rule and the weight of each that takes part."""

    combine: Literal["mean", "min"]
    weights: Mapping[str, float]

    def label(self, labels: Mapping[str, float]) -> float:
        """Pool the labels of one edit as the checkpoint pools its means. NaN where one is NaN."""
        return combine({name: Dimension(labels[name], None) for name in self.weights}, self.weights, self.combine)[0]


class GroupScorer(Protocol):
    """Scores groups. ``score`` may be called from ``concurrency`` threads at once."""

    model: str
    fingerprint: str
    dimensions: Sequence[str]
    pooling: Pooling
    concurrency: int

    def score(self, group: Group) -> list[Outcome]:
        """One outcome per edit, in order. Raises only what makes the whole evaluation pointless."""
        ...


class BackendScorer:
    """A backend in this process: the server's own preparation, engine and pooling, without the server."""

    concurrency = 1

    def __init__(
        self,
        preparer: Preparer,
        backend: Backend[Any],
        *,
        model: str,
        fingerprint: str,
        dimensions: Sequence[str],
        pooling: Pooling,
    ) -> None:
        self.model = model
        self.fingerprint = fingerprint
        self.dimensions = dimensions
        self.pooling = pooling
        self._preparer = preparer
        self._backend = backend

    def score(self, group: Group) -> list[Outcome]:
        """Implements ``GroupScorer``. Raises WorkerLost when the device is gone."""
        try:
            sources = [self._preparer.image(source) for source in group.sources]
        except CandidateError as error:
            return [Failed(error.code, str(error))] * len(group.edits)
        problem = sources_problem(len(sources), self._preparer.max_sources)
        if problem is not None:
            return [Failed(InvalidRequest.code, f"the checkpoint '{self.model}' {problem}")] * len(group.edits)
        prepared = [self._prepare(sources, edit, group.instruction) for edit in group.edits]
        scored = iter(_run(self._backend, [one for one in prepared if isinstance(one, Candidate)]))
        return [next(scored) if isinstance(one, Candidate) else one for one in prepared]

    def _prepare(self, sources: Sequence[Image], edit: Edit, instruction: str) -> Candidate | Failed:
        try:
            return self._preparer.candidate(sources, self._preparer.image(edit.image), instruction)
        except CandidateError as error:
            return Failed(error.code, str(error))


def open_scorer(
    path: Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    engine: str = "trie",
    allow_pipeline_drift: bool = False,
) -> BackendScorer:
    """A scorer of a checkpoint folder, loaded, warm and self-tested as ``jrm serve`` does it; options as there.

    Raises CheckpointError.
    """
    from jrm_service.model.checkpoint_source import open_source  # brings torch, which evaluating a server does not need

    source = open_source(path, [device], dtype, engine, allow_pipeline_drift=allow_pipeline_drift)
    served, (backend,) = source.load()
    manifest = source.checkpoint.manifest
    return BackendScorer(
        source.preparer,
        backend,
        model=served.name,
        fingerprint=served.fingerprint,
        dimensions=manifest.dimensions,
        pooling=Pooling(manifest.reward.combine, manifest.pooled_weights),
    )


def _run(backend: Backend[Any], candidates: Sequence[Candidate]) -> list[Outcome]:
    """Score a batch as the server does: one that makes the backend raise is run in halves, down to the culprit."""
    if not candidates:
        return []
    scored: BatchResult | None = None
    try:
        scored = backend.score(backend.collate(candidates))
    except WorkerLost:
        raise
    except Exception as error:  # whatever a model can raise, out of memory included
        if len(candidates) == 1:
            return [Failed("internal", f"the backend raised {type(error).__name__}: {error}")]
    if scored is None:  # not inside the handler, whose traceback keeps the tensors of the failed batch alive
        middle = len(candidates) // 2
        return _run(backend, candidates[:middle]) + _run(backend, candidates[middle:])
    return [
        outcome if isinstance(outcome, Score) else Failed(outcome.code, str(outcome))
        for outcome in checked_results(scored, len(candidates))
    ]


class ServerScorer:
    """A running server, through the client. Retries and deadlines are the client's; groups go out concurrently."""

    def __init__(self, client: JRMClient, *, concurrency: int = 8) -> None:
        """Ask the server what it serves. Raises JRMError if it cannot be asked, EvaluationError if it does not say."""
        self.concurrency = concurrency
        self._client = client
        info = client.info()
        try:
            self.model, self.fingerprint = str(info["model"]), str(info["fingerprint"])
            self.dimensions: Sequence[str] = [str(name) for name in info["dimensions"]]
            self.pooling = Pooling(info["reward"]["combine"], dict(info["reward"]["weights"]))
        except (KeyError, TypeError, ValueError):
            raise EvaluationError(
                "the server's /v1/info names no dimensions and no pooling: it serves no checkpoint (a fake backend?)"
            ) from None

    def score(self, group: Group) -> list[Outcome]:
        """Implements ``GroupScorer``. A refusal of this very request (400, 413) fails the edits of this group.

        Raises JRMError for any other failure of a call, and EvaluationError when another checkpoint answers.
        """
        try:
            scores = self._client.score_group(
                group.source, group.instruction, [edit.image for edit in group.edits], on_error="nan"
            )
        except APIStatusError as error:
            if error.status not in _REFUSALS_OF_ONE_GROUP:
                raise
            return [Failed(error.code or f"http_{error.status}", error.message)] * len(group.edits)
        outcomes: list[Outcome] = []
        for score in scores:
            if score.error is not None:
                outcomes.append(Failed(score.error.code, score.error.message))
                continue
            if score.fingerprint != self.fingerprint:
                raise EvaluationError(
                    f"the server now has the checkpoint {score.fingerprint}, the evaluation began with "
                    f"{self.fingerprint}"
                )
            dimensions = {name: Dimension(d.mean, d.std) for name, d in score.dimensions.items()}
            outcomes.append(Score(score.reward, score.reward_std, dimensions))
        return outcomes


class FakeScorer:
    """Scores by a function, for tests; ``scored`` lists the instructions of the groups that it was asked for."""

    concurrency = 1

    def __init__(
        self,
        judge: Callable[[Group], Sequence[Outcome]],
        *,
        dimensions: Sequence[str],
        pooling: Pooling | None = None,
        fingerprint: str = "fake",
    ) -> None:
        self.model = "fake"
        self.fingerprint = fingerprint
        self.dimensions = dimensions
        self.pooling = pooling or Pooling("mean", dict.fromkeys(dimensions, 1.0))
        self.scored: list[str] = []
        self._judge = judge

    def score(self, group: Group) -> list[Outcome]:
        """Implements ``GroupScorer``."""
        self.scored.append(group.instruction)
        return list(self._judge(group))
