"""A reward file for OpenRLHF: ``--reward.remote_url .../jrm_client/trainers/openrlhf.py --data.label_key label``.

Configured by environment variables (``jrm_client.trainers.environment``). OpenRLHF passes only text and the label, so
the label is a JSON object with what would be columns elsewhere: ``{"source": "a.png", "instruction": "…"}``.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from jrm_client.trainers import environment
from jrm_client.trainers.scorer import Scorer


def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any], **_: Any) -> dict[str, Any]:
    """Return ``rewards``, ``scores`` (both float32 [N]) and ``extra_logs``, the mean of each dimension.

    A query is its prompt and the completion. Raises ValueError for one that does not begin with its prompt and for a
    label that is not a JSON object, ScoreError for a candidate without a score, and what ``Scorer.scores`` raises.
    """
    import torch

    rows = [_row(label, index) for index, label in enumerate(labels)]
    columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}
    completions = [_completion(query, prompt) for query, prompt in zip(queries, prompts, strict=True)]
    scores = [score for score in _scorer().scores(completions, columns) if score is not None]
    rewards = torch.tensor([score.reward for score in scores], dtype=torch.float32)
    means = {name: torch.tensor([score.dimensions[name].mean for score in scores]) for name in scores[0].dimensions}
    return {"rewards": rewards, "scores": rewards, "extra_logs": means}


@functools.cache
def _scorer() -> Scorer:
    # OpenRLHF calls for one sample at a time, where it was completed: calls of different processes do not correspond.
    return Scorer(environment.url(), distributed=False, **environment.options())


def _row(label: Any, index: int) -> Mapping[str, Any]:
    try:
        row = json.loads(label) if isinstance(label, str) else label
    except ValueError:
        row = None
    if not isinstance(row, Mapping):
        raise ValueError(
            f'labels[{index}]: expected a JSON object such as {{"source": "a.png", "instruction": "make it red"}}; '
            "--data.label_key names its column"
        )
    return row


def _completion(query: str, prompt: str) -> str:
    if not query.startswith(prompt):
        raise ValueError(
            "a query does not begin with its prompt, as with images in it; call this function from a reward_func of "
            'your own, with the completions as queries and "" as prompts'
        )
    return query[len(prompt) :]
