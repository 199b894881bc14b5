"""One replica of a Ray Serve deployment: the server's own application, on the devices that Ray has assigned."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ray
from ray import serve
from ray.serve.exceptions import DeploymentUnavailableError

from .autoscaling import QUEUED
from .calls import Head, Headers, call, whole

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from jrm_service.scoring.types import ServedModel

    from .everywhere import Reply

_WELL = {"ready", "degraded", "sleeping", "draining"}
_METRICS_TIMEOUT_S = 5.0


@serve.ingress()
class Replica:
    """Ray makes one in a process of its own, and calls everything here in one event loop.

    ``settings`` are those that were given, by name; the environment of the replica has the others. ``gpu_fraction``
    is what the replica may take of a GPU that it shares, None where it has its devices to itself.
    """

    def __init__(self, settings: Mapping[str, Any], gpu_fraction: float | None = None) -> None:
        # It would make the metrics library keep its numbers in files, for servers of several processes.
        os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)

        from jrm_service import logs
        from jrm_service.app import create_app
        from jrm_service.settings import Settings

        from .everywhere import Everywhere

        share = {} if gpu_fraction is None else {"gpu_share": gpu_fraction}
        in_force = Settings(**{**assigned_devices(), **share, **settings})
        logs.configure(in_force.log_format)
        self._started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._application = create_app(in_force, on_ready=self._on_ready, on_failed=self._on_failed)
        self._everywhere = Everywhere(self._application, self._ask_all, admin=in_force.admin)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return behind_proxy(self._everywhere)

    def _on_ready(self, _model: ServedModel) -> None:
        self._started.set_result(None)

    def _on_failed(self, error: BaseException) -> None:
        if not self._started.done():
            self._started.set_exception(error)

    async def check_health(self) -> None:
        """Ray asks this once before a replica gets requests, and then all the time: one that raises is replaced.

        Waits until the model is loaded and warm. Raises what keeps it from being, and RuntimeError when nothing scores
        any more or while the last worker starts again; Ray acts on three failures in a row.
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

    async def asgi(self, method: str, target: str, headers: Headers, body: bytes) -> AsyncGenerator[Head | bytes, None]:
        """Answer a request that comes through a handle: see ``calls.call``. ``JRMClient.from_ray`` sends them."""
        async for piece in call(self._everywhere, method, target, headers, body):
            yield piece

    async def here(self, method: str, target: str, headers: Headers, body: bytes) -> Reply:
        """This replica's own answer to what every replica is asked."""
        from .everywhere import Reply

        replica = serve.get_replica_context().replica_id.unique_id
        return Reply(replica, *await whole(self._application, method, target, headers, body))

    async def _ask_all(self, method: str, target: str, headers: Headers, body: bytes) -> Sequence[Reply | None]:
        context = serve.get_replica_context()
        handle = serve.get_deployment_handle(context.deployment, context.app_name)
        asked = handle.broadcast("here", method, target, headers, body)
        timeout_s = _METRICS_TIMEOUT_S if method == "GET" else None
        try:
            answers = await asked.results_async(timeout_s=timeout_s, return_exceptions=True)
        except (TimeoutError, DeploymentUnavailableError):
            return []
        return [None if isinstance(answer, BaseException) else answer for answer in answers]


def behind_proxy(app: ASGIApp) -> ASGIApp:
    """``app`` behind Ray's proxy, which leaves the route prefix in the path, and puts ``x-request-id`` on every reply
    itself, the one that the caller has sent."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        prefix = scope.get("root_path", "")
        if prefix:  # the links of pages are relative: nobody needs to know it
            scope = {**scope, "path": scope["path"].removeprefix(prefix) or "/", "root_path": ""}

        async def pass_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [(name, value) for name, value in message["headers"] if name != b"x-request-id"]
                message = {**message, "headers": kept}
            await send(message)

        await app(scope, receive, pass_on)

    return answer


def assigned_devices() -> dict[str, str]:
    """The setting ``device`` for what Ray has assigned to this process; its workers find no other GPU."""
    gpus = ray.get_runtime_context().get_accelerator_ids()["GPU"]
    if not gpus:
        return {"device": "cpu"}
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    return {"device": ",".join(f"cuda:{number}" for number in range(len(gpus)))}
