"""One replica of a Ray Serve deployment: the server's own application, on the devices that Ray has assigned."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ray
from ray import serve
from ray.serve.exceptions import DeploymentUnavailableError

from .asgi_calls import Head, Headers, call, call_buffered
from .autoscaling import QUEUED

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from jrm_service.scoring.types import ServedModel

    from .broadcast import Reply

_HEALTHY = {"ready", "degraded", "sleeping", "draining"}
_METRICS_TIMEOUT_S = 5.0


@serve.ingress()
class Replica:
    """The class that Ray deploys: one instance per replica, in a process of its own. Ray calls it in one event loop.

    ``settings`` are those of the deployment, by name; others come from the environment of the replica.
    ``gpu_fraction``: the fraction of a shared GPU that the replica may take, None if it has its devices to itself.
    """

    def __init__(self, settings: Mapping[str, Any], gpu_fraction: float | None = None) -> None:
        # With it, prometheus_client would keep its numbers in files, as servers of several processes need.
        os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)

        from jrm_service import logs
        from jrm_service.app import create_app
        from jrm_service.settings import Settings

        from .broadcast import BroadcastMiddleware

        share = {} if gpu_fraction is None else {"gpu_share": gpu_fraction}
        in_force = Settings(**{**assigned_devices(), **share, **settings})
        logs.configure(in_force.log_format)
        self._started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._application = create_app(in_force, on_ready=self._on_ready, on_failed=self._on_failed)
        self._broadcasting = BroadcastMiddleware(self._application, self._ask_all, admin=in_force.admin)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return behind_proxy(self._broadcasting)

    def _on_ready(self, _model: ServedModel) -> None:
        self._started.set_result(None)

    def _on_failed(self, error: BaseException) -> None:
        if not self._started.done():
            self._started.set_exception(error)

    async def check_health(self) -> None:
        """Ray calls this once before a replica gets requests, and then periodically; a replica that raises is replaced.

        Waits until the model is loaded and warm. Raises the error that prevents this, and RuntimeError when no worker
        scores any more or while the last one restarts; Ray acts on three failures in a row.
        """
        await asyncio.shield(self._started)
        problems = [
            f"{name}: {state}: {why}"
            for name, (state, why) in self._application.states().items()
            if state not in _HEALTHY
        ]
        if problems:
            raise RuntimeError("; ".join(problems))

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Return the statistics that Ray collects from every replica for the autoscaling policy."""
        return {QUEUED: self._application.metrics.registry.get_sample_value("jrm_queue_depth") or 0.0}

    async def asgi(self, method: str, target: str, headers: Headers, body: bytes) -> AsyncGenerator[Head | bytes, None]:
        """Answer a request that comes through a handle, as from ``JRMClient.from_ray``: see ``asgi_calls.call``."""
        async for piece in call(self._broadcasting, method, target, headers, body):
            yield piece

    async def own_reply(self, method: str, target: str, headers: Headers, body: bytes) -> Reply:
        """Return this replica's own reply to a request that goes to every replica."""
        from .broadcast import Reply

        replica = serve.get_replica_context().replica_id.unique_id
        return Reply(replica, *await call_buffered(self._application, method, target, headers, body))

    async def _ask_all(self, method: str, target: str, headers: Headers, body: bytes) -> Sequence[Reply | None]:
        context = serve.get_replica_context()
        handle = serve.get_deployment_handle(context.deployment, context.app_name)
        broadcast = handle.broadcast("own_reply", method, target, headers, body)
        timeout_s = _METRICS_TIMEOUT_S if method == "GET" else None
        try:
            answers = await broadcast.results_async(timeout_s=timeout_s, return_exceptions=True)
        except (TimeoutError, DeploymentUnavailableError):
            return []
        return [None if isinstance(answer, BaseException) else answer for answer in answers]


def behind_proxy(app: ASGIApp) -> ASGIApp:
    """Adapt ``app`` to Ray's proxy, which leaves the route prefix in the path and adds the caller's ``x-request-id`` to
    every reply itself."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        prefix = scope.get("root_path", "")
        if prefix:  # links in pages are relative, so the application does not need it
            scope = {**scope, "path": scope["path"].removeprefix(prefix) or "/", "root_path": ""}

        async def pass_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [(name, value) for name, value in message["headers"] if name != b"x-request-id"]
                message = {**message, "headers": kept}
            await send(message)

        await app(scope, receive, pass_on)

    return answer


def assigned_devices() -> dict[str, str]:
    """Return the setting ``device`` for the GPUs that Ray has assigned; workers of this process see no others."""
    gpus = ray.get_runtime_context().get_accelerator_ids()["GPU"]
    if not gpus:
        return {"device": "cpu"}
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    return {"device": ",".join(f"cuda:{number}" for number in range(len(gpus)))}
