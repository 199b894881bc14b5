"""Routes for operators: health, metrics, models, info."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
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

PartState = Literal["loading", "ready", "degraded", "restarting", "draining", "failed"]
_PACKAGES = ("jrm-serve", "torch", "transformers", "tokenizers", "pillow", "numpy", "fastapi")
PROBES = frozenset({"/health/live", "/health/ready", "/metrics"})
"""What machines call all day, with or without an API key."""

_NOT_READY: dict[int | str, dict[str, Any]] = {503: {"model": ErrorResponse}}
_GUARDED: dict[int | str, dict[str, Any]] = {401: {"model": ErrorResponse}, **_NOT_READY}


class Live(BaseModel):
    """The process answers."""

    status: Literal["live"] = "live"


class Ready(BaseModel):
    """Everything that this process serves is loaded and warm. ``degraded``: some workers are lost, others serve."""

    status: Literal["ready"] = "ready"
    parts: dict[str, PartState]


def ops_router(
    *,
    states: Callable[[], Mapping[str, tuple[PartState, str]]],
    model: Callable[[], ServedModel],
    limits: Callable[[], Mapping[str, Any]],
    metrics: Metrics,
) -> APIRouter:
    """``states`` gives each part that this process serves, with a reason; ``model`` what is served, or NotReady.

    ``limits`` are those in force.
    """
    router = APIRouter(tags=["operations"])
    started = int(time.time())

    @router.get("/health/live", response_model=Live)
    async def live() -> Live:
        """The process is up. Never fails while the process can answer at all."""
        return Live()

    @router.get("/health/ready", response_model=Ready, responses=_NOT_READY)
    async def ready() -> Ready | JSONResponse:
        """Every part that this process serves is loaded, warm and not draining. Else 503 with the parts and why."""
        now = states()
        parts = {name: state for name, (state, _) in now.items()}
        if all(state in ("ready", "degraded") for state in parts.values()):
            return Ready(parts=parts)
        reasons = "; ".join(f"{name}: {state}{f': {why}' if why else ''}" for name, (state, why) in now.items())
        return error_reply("draining" if "draining" in parts.values() else "not_ready", reasons)

    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def prometheus() -> Response:
        """Prometheus text format."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @router.get("/v1/models", response_model=ModelList, responses=_GUARDED)
    async def models() -> ModelList:
        """OpenAI's list of models: the one checkpoint that is served."""
        return ModelList(data=[ModelCard(id=model().name, created=started)])

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
