"""The score of one edit, and the error of a call in which some edits have none: plain, picklable."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .errors import CandidateError, JRMError


@dataclass(frozen=True, slots=True)
class Dimension:
    """One named output: r ~ N(mean, std²). ``std`` is None for a mean-only head."""

    mean: float
    std: float | None


@dataclass(frozen=True, slots=True)
class Score:
    """The outcome of one candidate.

    ``reward_std`` is None for a mean-only checkpoint. ``cached``: the server had this score already. ``fingerprint``
    names the weights and preprocessing that the numbers come from, ``precision`` what they were computed in:
    ``float32``, ``bfloat16``, ``float16`` or ``fp8``, or empty from an older server.

    ``normalized`` is the reward between 0 and 1, where the checkpoint says how (``reward.normalize`` in its manifest),
    else None.

    ``error`` is set only under ``on_error="nan"``: the candidate has no score then, ``reward``, ``reward_std``,
    ``normalized`` and every dimension are NaN, and ``model``, ``fingerprint`` and ``precision`` are empty.
    """

    reward: float
    reward_std: float | None
    dimensions: Mapping[str, Dimension]
    cached: bool
    model: str
    fingerprint: str
    error: CandidateError | None = None
    precision: str = ""
    normalized: float | None = None


class FailedDimensions(dict[str, Dimension]):
    """The dimensions of a candidate without a score: NaN under every name, also one that no reply has named yet."""

    def __missing__(self, name: str) -> Dimension:
        return Dimension(math.nan, math.nan)


def failed_score(error: CandidateError, dimensions: tuple[str, ...] = ()) -> Score:
    """Return the score of a candidate that has none: NaN everywhere, and the reason."""
    names = FailedDimensions({name: Dimension(math.nan, math.nan) for name in dimensions})
    return Score(math.nan, math.nan, names, False, "", "", error, normalized=math.nan)


class ScoreError(JRMError):
    """Some candidates have no score, and the caller asked for all of them (``on_error="raise"``).

    ``failed`` maps the index of a candidate to its error. ``scores`` is in the order of the candidates, None for
    those that failed, so that the good ones are not lost.
    """

    def __init__(self, failed: Mapping[int, CandidateError], scores: Sequence[Score | None]) -> None:
        first = min(failed)
        message = (
            f"{len(failed)} of {len(scores)} candidates have no score; the first is candidate {first}: "
            f'{failed[first]}. ScoreError.scores has the others; on_error="nan" gives NaN instead of raising.'
        )
        super().__init__(message)
        self.request_id = failed[first].request_id
        self.failed = dict(failed)
        self.scores = list(scores)

    def __str__(self) -> str:
        return self.message  # it names the first candidate's request already
