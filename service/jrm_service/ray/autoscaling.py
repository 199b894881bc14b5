"""How many replicas there should be. Ray pickles this module by value: the controller need not have the package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

QUEUED = "queued_candidates"
"""What Ray calls the number by which it scales, ``jrm_queue_depth``."""


class QueuedCandidates:
    """A policy of Ray's autoscaler: as many replicas as make ``target`` queued candidates for each.

    Delays, factors and bounds are those of the autoscaling config.
    """

    def __init__(self, target: int) -> None:
        self._target = target

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        """The number of replicas, not rounded, and no state."""
        queued = (context.aggregated_metrics or {}).get(QUEUED)
        if not queued:  # nobody has told yet
            return context.target_num_replicas, {}
        return sum(queued.values()) / self._target, {}
