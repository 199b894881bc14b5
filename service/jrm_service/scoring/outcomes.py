"""How one candidate ends: a score or a typed error, and what it cost. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jrm_service.errors import CandidateError, InternalError, NonFiniteScore

from .backend import Scored
from .types import Score

Origin = Literal["computed", "shared", "stored"]
"""Where an outcome comes from: a batch that the candidate was in, one that an identical candidate was in at the same
time, or an earlier one whose score was kept."""


class Cancelled(CandidateError):
    """The caller left before there was a score. Nobody is there to read it: it appears in metrics, never in a reply."""

    code = "cancelled"


LABELS = ("ok", *(kind.code for kind in CandidateError.__subclasses__()))
"""Every way in which an admitted candidate can end, as ``Outcome.label`` has it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The one end of an admitted candidate.

    ``queue_ms`` runs from the candidate being put into the queue until its batch went to the device for the last time;
    ``inference_ms`` is how long that batch ran. ``tokens_computed`` is the candidate's share of the batch's tokens:
    the shares of a batch add up to what the backend reported. Both times are 0 for a score that was kept, and nothing
    is computed for one that is shared or kept.
    """

    result: Score | CandidateError
    queue_ms: float = 0.0
    inference_ms: float = 0.0
    tokens_computed: int = 0
    origin: Origin = "computed"

    @property
    def label(self) -> str:
        """``ok`` or the code of the error: the label under which it is counted."""
        return self.result.code if isinstance(self.result, CandidateError) else "ok"


def verdicts(scored: Scored, count: int) -> list[Score | CandidateError]:
    """What a backend's answer means for each of the ``count`` candidates of its batch, in order.

    A score with NaN or infinity in it becomes a NonFiniteScore of that candidate alone. With a wrong number of outcomes
    nobody knows whose score is whose, so all of them become an InternalError.
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
    seen = given = 0
    for weight in weights:
        seen += weight
        parts.append(total * seen // whole - given)
        given += parts[-1]
    return parts
