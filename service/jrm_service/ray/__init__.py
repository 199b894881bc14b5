"""JRM Serve as a deployment of Ray Serve.

``serve run jrm_service.ray:app checkpoint=DIR num_gpus=1 num_replicas=2``, or from a program in the cluster
``handle = serve.run(deployment(checkpoint=DIR, num_gpus=1))`` and then ``JRMClient.from_ray(handle)``.
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
"""Settings that Ray decides. They are ignored in the environment, and refused as arguments."""


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
    """Return a deployment that scores, for ``serve.run``. Every replica is a server of its own, with the same API.

    Args:
        num_replicas: the number of replicas; with ``max_replicas``, the lowest.
        max_replicas: the highest number of replicas. Without it, nothing is scaled.
        queued_candidates: admitted and unfinished candidates per replica that the autoscaler aims at.
        autoscaling: further fields of Ray's AutoscalingConfig, such as ``upscale_delay_s``.
        num_gpus: GPUs of each replica; each GPU has a worker of its own. With a fraction, the replica takes no more
            than that fraction of a GPU's memory.
        num_cpus: CPUs of each replica, as Ray counts them.
        options: options of ``serve.deployment``, such as ``placement_group_bundles``; they override all of these.
        settings: the server's settings, by name, such as ``checkpoint``, ``dtype`` or ``api_keys_file``. Others come
            from the environment of this process (JRM_…), then from that of the replica.

    Raises ValueError for unknown settings, for those that Ray decides, for ``reload_root``, which would reach only the
    replicas that run at that moment, and for critiques on a fraction of a GPU.
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
    chosen = {name: getattr(in_force, name) for name in Settings.model_fields if name in named}
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
        # The waiting line of a replica refuses excess requests with a Retry-After. Ray would let them wait.
        "max_ongoing_requests": in_force.max_requests,
        # Time for running requests when a replica is removed; then it is killed.
        "graceful_shutdown_timeout_s": in_force.grace_s,
        **(options or {}),
    }
    replicas: serve.Deployment = serve.deployment(**serve_options)(Replica)
    return replicas.bind(chosen, num_gpus if num_gpus % 1 else None)


def app(args: dict[str, Any]) -> serve.Application:
    """The application of ``serve run jrm_service.ray:app NAME=VALUE …``: ``deployment`` with these arguments."""
    return deployment(**args)
