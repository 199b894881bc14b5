"""The names that users may rely on. Changing this list is a change of the interface."""

import subprocess
import sys

import jrm_client


def test_public_names() -> None:
    assert sorted(jrm_client.__all__) == [
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
    assert all(hasattr(jrm_client, name) for name in jrm_client.__all__)


def test_the_client_needs_only_its_own_dependencies() -> None:
    heavy = ("torch", "fastapi", "transformers", "starlette", "vllm", "ray")
    adapters = ", ".join(f"jrm_client.trainers.{name}" for name in ("trl", "verl", "openrlhf"))
    code = (
        f"import sys, jrm_client.cli, jrm_client.flow_grpo, {adapters}; print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_from_ray_says_what_it_needs() -> None:
    code = """
import sys
sys.modules["ray"] = None  # as if it were not installed
from jrm_client import JRMClient
try:
    JRMClient.from_ray(None)
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "from_ray needs ray: pip install 'jrm-serve[ray]'"
