"""The autoscaling policy: how many replicas Ray runs.

Ray pickles the policy by value, so the controller does not need this package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

QUEUED = "queued_candidates"
"""The name in Ray of the number that it scales by, which is ``jrm_queue_depth``."""


class QueuedCandidates:
    """A policy for Ray's autoscaler that aims at ``target`` queued candidates per replica.

    Delays, factors and bounds are those of the autoscaling config.
    """

    def __init__(self, target: int) -> None:
        self._target = target

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        """The number of replicas, not rounded, and no state."""
        queued = (context.aggregated_metrics or {}).get(QUEUED)
        if not queued:  # no replica has reported yet
            return context.target_num_replicas, {}
        return sum(queued.values()) / self._target, {}
