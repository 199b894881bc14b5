"""The routes of the wires that are enabled, and the checks of their settings."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.responses import Response
from starlette.types import Scope

from jrm_service.api.access_log import record_of
from jrm_service.api.parse import load_json_body
from jrm_service.api.score_path import IncomingRequest, ScorePath, Wire, refusal
from jrm_service.errors import InvalidRequest, RequestError, WireScaleError
from jrm_service.scoring.types import ServedModel

from . import pickle_wire
from .deepgen import DeepgenWire
from .edit_r1 import EditR1Wire
from .editscore import EditScoreWire
from .flow_factory import FlowFactoryWire
from .kserve import BINARY, KServeWire
from .rerank import RerankWire
from .rewards import Rewards, accepted_names
from .unirl import UniRLWire

logger = logging.getLogger(__name__)

WIRES: Mapping[str, Callable[[Rewards], Wire]] = {
    wire.name: wire
    for wire in (UniRLWire, FlowFactoryWire, KServeWire, RerankWire, EditR1Wire, DeepgenWire, EditScoreWire)
}
_AT_ROOT = ("deepgen", "editscore")  # both at POST /, distinguished by their keys
_STARTS = {"/compute": "flow-factory", "/mode/": "edit-r1", "/v2/models/": "kserve"}
_ASSUMED = {
    "edit-r1": "Edit-R1 drops groups with a mean over 0.9 or a standard deviation under 0.05, FIRM-Reward divides by 5",
    "editscore": "EditScore counts an edit as a success from 0.5 on",
}
"""For clients that assume rewards between 0 and 1: what they do with them."""
V2_LIVE, V2_READY = "/v2/health/live", "/v2/health/ready"
_VERSIONS = ("", "/versions/{version}")
PROBES: Mapping[str, frozenset[str]] = {"kserve": frozenset({V2_LIVE, V2_READY})}
"""Routes of a wire that require no key, like ``/health``."""


def wires_of(names: Sequence[str], *, normalized: Sequence[str], further_names: Sequence[str]) -> dict[str, Wire]:
    """The wires with these names; ``normalized`` are the names of those that send normalized rewards."""
    return {name: WIRES[name](Rewards(name in normalized, further_names)) for name in names}


def warn_of_raw_rewards(names: Sequence[str], *, normalized: Sequence[str]) -> None:
    """Log once that a client assumes rewards between 0 and 1 while raw ones are sent."""
    for name in names:
        if name in _ASSUMED and name not in normalized:
            logger.warning(
                "the wire %s sends raw rewards, and its client assumes 0 to 1: %s. See --wire-scale",
                name,
                _ASSUMED[name],
            )


def check_scales(normalized: Sequence[str], model: ServedModel) -> None:
    """Raise WireScaleError if a wire should send normalized rewards and the checkpoint has none."""
    if normalized and model.scale is None:
        raise WireScaleError(
            f"wire_scale {normalized[0]}=normalized: the checkpoint '{model.name}' has no reward.normalize in its "
            "manifest; `jrm calibrate` writes it"
        )


def uses_root(wires: Collection[str]) -> bool:
    """Whether one of the wires uses ``POST /``."""
    return any(name in wires for name in _AT_ROOT)


def wire_at(wires: Mapping[str, Wire], scope: Scope) -> Wire | None:
    """The only wire whose clients send such a request, so that a refusal before routing has that wire's format."""
    if scope["method"] != "POST":
        return None
    known = (name for start, name in _STARTS.items() if scope["path"].startswith(start))
    return next((wires[name] for name in known if name in wires), None)


def wires_router(
    path: ScorePath, wires: Mapping[str, Wire], served: Callable[[], ServedModel], further_names: Sequence[str]
) -> APIRouter:
    """The routes of ``wires``, except our own ones that they share. They are left out of the schema.

    ``served`` returns the served model, or raises NotReady or Draining while no requests are accepted.
    """
    router = APIRouter(include_in_schema=False)

    def add(route: str, load: Callable[[IncomingRequest], Any], *served_wires: Wire) -> None:
        async def endpoint(request: Request) -> Response:
            return await path.serve(request, load, served_wires)

        router.add_api_route(route, endpoint, methods=["POST"])

    if "unirl" in wires:

        @router.get("/rewards")
        async def rewards() -> dict[str, list[str]]:
            return {"rewards": accepted_names(served(), further_names)}

    if flow_factory := wires.get("flow-factory"):
        add("/compute", _json, flow_factory)
    if edit_r1 := wires.get("edit-r1"):
        add("/mode/{mode}", pickle_wire.load, edit_r1)
    if at_root := [wires[name] for name in _AT_ROOT if name in wires]:
        add("/", pickle_wire.load, *at_root)
    if rerank := wires.get("rerank"):
        for route in ("/rerank", "/v1/rerank", "/v2/rerank"):
            add(route, _json, rerank)
    kserve = wires.get("kserve")
    if isinstance(kserve, KServeWire):
        for suffix in _VERSIONS:
            add(f"/v2/models/{{model}}{suffix}/infer", _tensors, kserve)
        _add_metadata(router, kserve, served)
    return router


def _add_metadata(router: APIRouter, kserve: KServeWire, served: Callable[[], ServedModel]) -> None:
    def describe(request: Request, description: Callable[[ServedModel], dict[str, Any]]) -> Response:
        """Describe the model; refused while it accepts no requests, or if the path names another one."""
        try:
            model = served()
            kserve.require(request.path_params.get("name"), request.path_params.get("version"), model)
        except RequestError as error:
            return refusal(record_of(request.scope), kserve, error)
        return JSONResponse(description(model))

    @router.get("/v2")
    async def server() -> dict[str, Any]:
        return {"name": "jrm-serve", "version": version("jrm-serve"), "extensions": []}

    @router.get(V2_LIVE)
    async def live() -> dict[str, bool]:
        return {"live": True}

    @router.get(V2_READY)
    async def ready(request: Request) -> Response:
        return describe(request, lambda _model: {"ready": True})

    async def model_ready(request: Request) -> Response:
        return describe(request, lambda _model: {"name": request.path_params["name"], "ready": True})

    async def metadata(request: Request) -> Response:
        return describe(request, lambda model: kserve.metadata(request.path_params["name"], model))

    for suffix in _VERSIONS:
        router.add_api_route(f"/v2/models/{{name}}{suffix}/ready", model_ready, methods=["GET"])
        router.add_api_route(f"/v2/models/{{name}}{suffix}", metadata, methods=["GET"])


def _json(incoming: IncomingRequest) -> Any:
    return _json_of(incoming, incoming.headers.get("content-type", ""))


def _tensors(incoming: IncomingRequest) -> Any:
    """JSON, also from clients that leave out its content type."""
    if BINARY in incoming.headers:
        raise InvalidRequest(f"{BINARY}: binary tensor data is not supported; send the tensors as JSON")
    return _json_of(incoming, incoming.headers.get("content-type", "application/json"))


def _json_of(incoming: IncomingRequest, content_type: str) -> Any:
    encoding = incoming.headers.get("content-encoding", "identity")
    return load_json_body(content_type, incoming.body, content_encoding=encoding)
