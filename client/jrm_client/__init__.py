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
    ScoreError,
)
from .protocol import ExplainDelta, ExplainDone, Explanation
from .results import Dimension, GroupScores, Score
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
