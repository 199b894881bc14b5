"""JRM client: rewards for edited images from a JRM server.

    from jrm_client import JRMClient

    client = JRMClient("http://localhost:8000")
    client.score_group("source.png", "make the car red", ["edit-0.png", "edit-1.png"]).rewards

``jrm_client.trainers`` has the reward functions that trainers plug in.
"""

from .aio import AsyncJRMClient
from .client import JRMClient
from .errors import (
    APIConnectionError,
    APIResponseError,
    APIStatusError,
    APITimeoutError,
    CandidateError,
    FingerprintMismatch,
    JRMError,
)
from .explanations import ExplainDone, Explanation
from .group_scores import GroupScores
from .protocol import ExplainDelta
from .results import Dimension, Score, ScoreError
from .retry import Backoff

__all__ = [
    "APIConnectionError",
    "APIResponseError",
    "APIStatusError",
    "APITimeoutError",
    "AsyncJRMClient",
    "Backoff",
    "CandidateError",
    "Dimension",
    "ExplainDelta",
    "ExplainDone",
    "Explanation",
    "FingerprintMismatch",
    "GroupScores",
    "JRMClient",
    "JRMError",
    "Score",
    "ScoreError",
]
