"""JRM Serve as a deployment of Ray Serve.

``serve run jrm_service.ray:app checkpoint=DIR num_gpus=1 num_replicas=2``, or from a program that is in the cluster
already ``handle = serve.run(deployment(checkpoint=DIR, num_gpus=1))`` and ``JRMClient.from_ray(handle)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, validate_call
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from jrm_service.settings import Settings

from .autoscaling import QueuedCandidates
from .replica import Replica

_Count = Annotated[int, Field(ge=1)]

_OF_RAY = {
    "host": "Ray's proxies listen; see serve.start(http_options=…)",
    "port": "Ray's proxies listen; see serve.start(http_options=…)",
    "device": "Ray assigns devices; see num_gpus",
}
"""Settings that are Ray's to decide; the environment of a server may have them."""


@validate_call
def deployment(
    *,
    num_replicas: _Count = 1,
    max_replicas: _Count | None = None,
    queued_candidates: _Count = 96,
    autoscaling: Mapping[str, Any] | None = None,
    num_gpus: Annotated[float, Field(ge=0)] = 0,
    num_cpus: Annotated[float, Field(ge=0)] = 1,
    options: Mapping[str, Any] | None = None,
    **settings: Any,
) -> serve.Application:
    """A deployment that scores, for ``serve.run``. Every replica is a server of its own, with the same API.

    Args:
        num_replicas: how many there are; with ``max_replicas``, the fewest.
        max_replicas: the most that there are. Without it, nothing is scaled.
        queued_candidates: as many candidates, admitted and not finished, as there is to be a replica for.
        autoscaling: more of Ray's AutoscalingConfig, such as ``upscale_delay_s``.
        num_gpus: of each replica. Of several, each has a worker of its own. A replica with a part of one takes no
            more than this part of its memory.
        num_cpus: of each replica, as Ray counts them.
        options: of ``serve.deployment``, such as ``placement_group_bundles``; they win over all of these.
        settings: those of the server, by name, such as ``checkpoint``, ``dtype`` or ``api_keys_file``. The environment
            of this process (JRM_…) has the others, then that of the replica.

    Raises ValueError for settings that are none, for those that are Ray's, for ``reload_root``, which would reach the
    replicas of this moment alone, and for critiques on a part of a GPU.
    """
    for name in _OF_RAY.keys() & settings:
        raise ValueError(f"{name}: {_OF_RAY[name]}")
    if num_gpus > 1 and num_gpus % 1:
        raise ValueError(f"num_gpus={num_gpus:g}: a part of one GPU, or whole ones")
    in_force = Settings(**settings)
    if in_force.reload_root is not None:
        raise ValueError("reload_root: a replica that Ray starts later would have another checkpoint; deploy that one")
    if in_force.serves_explain and num_gpus % 1:
        raise ValueError(f"num_gpus={num_gpus:g}: critiques need whole GPUs; a part of one can serve scores")
    named = in_force.model_fields_set - _OF_RAY.keys()
    given = {name: getattr(in_force, name) for name in Settings.model_fields if name in named}
    scaling = None
    if max_replicas is not None:
        policy: Any = AutoscalingPolicy
        scaling = AutoscalingConfig(
            min_replicas=num_replicas,
            max_replicas=max_replicas,
            policy=policy(policy_function=QueuedCandidates, policy_kwargs={"target": queued_candidates}),
            **(autoscaling or {}),
        )
    serve_options = {
        "name": "JRM",
        **({"num_replicas": num_replicas} if scaling is None else {"autoscaling_config": scaling}),
        "ray_actor_options": {"num_cpus": num_cpus, "num_gpus": num_gpus},
        # The waiting line of a replica refuses what is too much, and says when to come back. Ray would let it wait.
        "max_ongoing_requests": in_force.max_requests,
        # Time for what is under way when a replica is to go; then it is killed.
        "graceful_shutdown_timeout_s": in_force.grace_s,
        **(options or {}),
    }
    made: serve.Deployment = serve.deployment(**serve_options)(Replica)
    return made.bind(given, num_gpus if num_gpus % 1 else None)


def app(args: dict[str, Any]) -> serve.Application:
    """What ``serve run jrm_service.ray:app NAME=VALUE …`` runs: ``deployment`` with these arguments."""
    return deployment(**args)
