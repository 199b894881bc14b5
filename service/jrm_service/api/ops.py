"""Routes for operators: health, metrics, models, info."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from starlette.responses import Response

from jrm_client.protocol import ErrorResponse, ModelCard, ModelList
from jrm_service.metrics import Metrics
from jrm_service.scoring.types import ServedModel
from jrm_service.versions import installed

from .errors import error_reply

PartState = Literal["loading", "ready", "degraded", "restarting", "sleeping", "draining", "failed"]
SERVING: frozenset[PartState] = frozenset({"ready", "degraded"})
"""The states in which a part accepts requests."""

_PACKAGES = ("jrm-serve", "torch", "transformers", "tokenizers", "pillow", "numpy", "fastapi")
PROBES = frozenset({"/health", "/health/startup", "/health/live", "/health/ready", "/metrics"})
"""The routes that probes and scrapers call all day, with or without an API key."""

_NOT_READY: dict[int | str, dict[str, Any]] = {503: {"model": ErrorResponse}}
_GUARDED: dict[int | str, dict[str, Any]] = {401: {"model": ErrorResponse}, **_NOT_READY}


class Live(BaseModel):
    """The process answers."""

    status: Literal["live"] = "live"


class Started(BaseModel):
    """Everything that this process serves has been ready once; ``Ready`` tells whether it still is."""

    status: Literal["started"] = "started"


class Ready(BaseModel):
    """Everything that this process serves is loaded and warm. ``degraded``: some workers are lost, others serve."""

    status: Literal["ready"] = "ready"
    parts: dict[str, PartState]


class Health(BaseModel):
    """Whether scores are available, and under which names: what clients of other reward servers check."""

    status: Literal["ok", "sleeping", "unavailable"] = "ok"
    rewards: dict[str, list[Literal["ready"]]]


def ops_router(
    *,
    started: Callable[[], bool],
    states: Callable[[], Mapping[str, tuple[PartState, str]]],
    model: Callable[[], ServedModel],
    reward_names: Callable[[], Sequence[str]],
    limits: Callable[[], Mapping[str, Any]],
    metrics: Metrics,
) -> APIRouter:
    """Return the routes for operators.

    ``states`` returns the state of each part that this process serves, with a reason; ``model`` the served model, or
    raises NotReady. ``started``: whether every part has been ready once. ``reward_names``: the names that trainers'
    requests may use for the reward. ``limits``: the limits in force.
    """
    router = APIRouter(tags=["operations"])
    created = int(time.time())

    def reasons() -> str:
        return "; ".join(f"{name}: {state}{f': {why}' if why else ''}" for name, (state, why) in states().items())

    @router.get("/health/startup", response_model=Started, responses=_NOT_READY)
    async def startup() -> Started | JSONResponse:
        """Every part has been loaded and warm once. It then stays 200: losing a part is no reason for a restart."""
        return Started() if started() else error_reply("not_ready", reasons())

    @router.get("/health/live", response_model=Live)
    async def live() -> Live:
        """The process is up. Never fails while the process can answer at all."""
        return Live()

    @router.get("/health/ready", response_model=Ready, responses=_NOT_READY)
    async def ready() -> Ready | JSONResponse:
        """Every part that this process serves is loaded, warm and accepts requests. Else 503 with the reasons."""
        parts = {name: state for name, (state, _) in states().items()}
        if all(state in SERVING for state in parts.values()):
            return Ready(parts=parts)
        code = next((state for state in ("draining", "sleeping") if state in parts.values()), "not_ready")
        return error_reply(code, reasons())

    @router.get("/health", response_model=Health, responses={503: {"model": Health}})
    async def health() -> Health | JSONResponse:
        """Like ``/health/ready``, in the format that trainers expect from a reward server."""
        if all(state in SERVING for state, _ in states().values()):
            return Health(rewards={name: ["ready"] for name in reward_names()})
        asleep = any(state == "sleeping" for state, _ in states().values())
        body = Health(status="sleeping" if asleep else "unavailable", rewards={}).model_dump()
        return JSONResponse(body, 503, {"retry-after": "1"})

    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def prometheus() -> Response:
        """Prometheus text format."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @router.get("/v1/models", response_model=ModelList, responses=_GUARDED)
    async def models() -> ModelList:
        """OpenAI's list of models: the one checkpoint that is served."""
        return ModelList(data=[ModelCard(id=model().name, created=created)])

    @router.get("/v1/info", response_model=dict[str, Any], responses=_GUARDED)
    async def info() -> dict[str, Any]:
        """What produces the scores: fingerprint, manifest summary, image spec, device, dtype, limits, versions."""
        served = model()
        return {
            "model": served.name,
            "fingerprint": served.fingerprint,
            **served.description,
            "limits": dict(limits()),
            "versions": {"python": platform.python_version(), **{name: installed(name) for name in _PACKAGES}},
        }

    return router
