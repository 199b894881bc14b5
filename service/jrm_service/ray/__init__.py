"""JRM Serve as a deployment of Ray Serve: ``serve run jrm_service.ray:app``, or ``serve.run(deployment(…))``."""

from __future__ import annotations

from typing import Any

from ray import serve

from .replica import Replica


def deployment(**settings: Any) -> serve.Application:
    return serve.deployment(Replica, name="JRM", max_ongoing_requests=4096).bind(settings)


def app(args: dict[str, Any]) -> serve.Application:
    return deployment(**args)
