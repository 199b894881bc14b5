"""The outcome of one candidate: a score or a typed error, and its cost. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jrm_service.errors import CandidateError, InternalError, NonFiniteScore

from .backend import BatchResult
from .types import Score

Origin = Literal["computed", "shared", "stored"]
"""Where an outcome comes from: a batch with the candidate itself, a batch with an identical candidate at the same time,
or the cache."""


class Cancelled(CandidateError):
    """The caller left before there was a score. It appears only in metrics, never in a reply."""

    code = "cancelled"


LABELS = ("ok", *(kind.code for kind in CandidateError.__subclasses__()))
"""Every value of ``Outcome.label``."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of an admitted candidate; each has exactly one.

    ``queue_ms`` is the time from when the candidate was put into the queue until its batch went to the device for the
    last time; ``inference_ms`` is how long that batch ran. ``tokens_computed`` is the candidate's share of the batch's
    tokens; the shares of a batch add up to what the backend reported. Both times are 0 for a cached score, and no
    tokens are computed for a shared or cached one.
    """

    result: Score | CandidateError
    queue_ms: float = 0.0
    inference_ms: float = 0.0
    tokens_computed: int = 0
    origin: Origin = "computed"

    @property
    def label(self) -> str:
        """``ok`` or the code of the error: its label in metrics."""
        return self.result.code if isinstance(self.result, CandidateError) else "ok"


def checked_results(scored: BatchResult, count: int) -> list[Score | CandidateError]:
    """Check a backend's answer: the result of each of the ``count`` candidates of its batch, in order.

    A score with NaN or infinity in it becomes that candidate's NonFiniteScore. With a wrong number of outcomes it is
    unknown which score belongs to which candidate, so all of them become an InternalError.
    """
    if len(scored.outcomes) != count:
        wrong = InternalError(f"the backend returned {len(scored.outcomes)} outcomes for a batch of {count}")
        return [wrong] * count
    return [_checked(result) for result in scored.outcomes]


def _checked(result: object) -> Score | CandidateError:
    if isinstance(result, CandidateError):
        return result
    if not isinstance(result, Score):
        return InternalError("the backend returned neither a score nor an error")
    return result if result.finite else NonFiniteScore("the model gave a number that is not finite")


def shares(total: int, weights: Sequence[int]) -> list[int]:
    """Split ``total`` into whole parts in proportion to ``weights``; the parts add up to ``total`` exactly."""
    whole = sum(weights)
    if whole == 0:
        weights, whole = [1] * len(weights), len(weights)
    parts: list[int] = []
    seen = assigned = 0
    for weight in weights:
        seen += weight
        parts.append(total * seen // whole - assigned)
        assigned += parts[-1]
    return parts
