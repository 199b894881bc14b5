"""One replica of a Ray Serve deployment: the server's own application, on the devices that Ray has assigned."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Mapping
from typing import TYPE_CHECKING, Any

import ray
from ray import serve

from .calls import Head, Headers, call

if TYPE_CHECKING:
    from jrm_service.app import Application
    from jrm_service.scoring.types import ServedModel

QUEUED = "queued_candidates"
"""What Ray calls the number by which it scales, ``jrm_queue_depth``."""

_WELL = {"ready", "degraded", "sleeping", "draining"}


@serve.ingress()
class Replica:
    """Ray makes one in a process of its own, and calls everything here in one event loop.

    ``settings`` are those that were given, by name; the environment of the replica has the others.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        # It would make the metrics library keep its numbers in files, for servers of several processes.
        os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)

        from jrm_service import logs
        from jrm_service.app import create_app
        from jrm_service.settings import Settings

        in_force = Settings(**{**assigned_devices(), **settings})
        logs.configure(in_force.log_format)
        self._started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._application = create_app(in_force, on_ready=self._on_ready, on_failed=self._on_failed)

    def __serve_build_asgi_app__(self) -> Application:  # noqa: PLW3201 - Ray's name for it
        return self._application

    def _on_ready(self, _model: ServedModel) -> None:
        self._started.set_result(None)

    def _on_failed(self, error: BaseException) -> None:
        if not self._started.done():
            self._started.set_exception(error)

    async def check_health(self) -> None:
        """Ray asks this once before a replica gets requests, and then all the time: one that raises is replaced.

        Waits until the model is loaded and warm. Raises what keeps it from being, and RuntimeError when nothing scores
        any more or while a worker that was lost starts again; Ray waits for three failures in a row.
        """
        await asyncio.shield(self._started)
        problems = [
            f"{name}: {state}: {why}" for name, (state, why) in self._application.states().items() if state not in _WELL
        ]
        if problems:
            raise RuntimeError("; ".join(problems))

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What Ray collects from every replica, for the policy that decides how many there are."""
        return {QUEUED: self._application.metrics.registry.get_sample_value("jrm_queue_depth") or 0.0}

    async def asgi(
        self, method: str, target: str, headers: Headers, body: bytes
    ) -> AsyncGenerator[Head | bytes, None]:
        """Answer a request that comes through a handle: see ``calls.call``. ``JRMClient.from_ray`` sends them."""
        async for piece in call(self._application, method, target, headers, body):
            yield piece


def assigned_devices() -> dict[str, str]:
    """The setting ``device`` for what Ray has assigned to this process; workers find no other GPU."""
    gpus = ray.get_runtime_context().get_accelerator_ids()["GPU"]
    if not gpus:
        return {"device": "cpu"}
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    return {"device": ",".join(f"cuda:{number}" for number in range(len(gpus)))}
