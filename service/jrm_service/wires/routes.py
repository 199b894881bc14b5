"""Which wires are on, and the routes that they add."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.responses import Response

from jrm_service.api.parse import load_json_body
from jrm_service.api.wire import ScorePath, Sent, Wire
from jrm_service.errors import RequestError
from jrm_service.scoring.types import ServedModel

from .flow_factory import FlowFactoryWire
from .kserve import KServeWire
from .rerank import RerankWire
from .rewards import Rewards, accepted_names
from .unirl import UniRLWire

WIRES: Mapping[str, Callable[[Rewards], Wire]] = {
    wire.name: wire for wire in (UniRLWire, FlowFactoryWire, KServeWire, RerankWire)
}

V2_LIVE, V2_READY = "/v2/health/live", "/v2/health/ready"
PROBES: Mapping[str, frozenset[str]] = {"kserve": frozenset({V2_LIVE, V2_READY})}
"""Routes of a wire that ask for no key, as ``/health`` does not."""


def wires_of(names: Sequence[str], *, normalized: Sequence[str], further_names: Sequence[str]) -> dict[str, Wire]:
    """The wires of these names; ``normalized`` are the names of those that send normalized rewards."""
    return {name: WIRES[name](Rewards(name in normalized, further_names)) for name in names}


def wires_router(
    path: ScorePath, wires: Mapping[str, Wire], served: Callable[[], ServedModel], further_names: Sequence[str]
) -> APIRouter:
    """The routes of ``wires``, but for those of ours that they share. The schema is that of our API, without them.

    ``served`` gives what is served, and raises NotReady or Draining unless requests are taken.
    """
    router = APIRouter(include_in_schema=False)

    def add(route: str, load: Callable[[Sent], Any], *asked: Wire) -> None:
        async def endpoint(request: Request) -> Response:
            return await path.serve(request, load, asked)

        router.add_api_route(route, endpoint, methods=["POST"])

    if "unirl" in wires:

        @router.get("/rewards")
        async def rewards() -> dict[str, list[str]]:
            return {"rewards": accepted_names(served(), further_names)}

    if flow_factory := wires.get("flow-factory"):
        add("/compute", _json, flow_factory)
    if rerank := wires.get("rerank"):
        for route in ("/rerank", "/v1/rerank", "/v2/rerank"):
            add(route, _json, rerank)
    kserve = wires.get("kserve")
    if isinstance(kserve, KServeWire):
        add("/v2/models/{model}/infer", _json_or_unsaid, kserve)
        _add_metadata(router, kserve, served)
    return router


def _add_metadata(router: APIRouter, kserve: KServeWire, served: Callable[[], ServedModel]) -> None:
    def told(tell: Callable[[ServedModel], dict[str, Any]], name: str | None = None) -> Response:
        """What is told of the model; refused while it takes no requests, and where it is called otherwise."""
        try:
            model = served()
            if name is not None:
                kserve.require(name, model)
        except RequestError as error:
            return kserve.refuse(error)
        return JSONResponse(tell(model))

    @router.get("/v2")
    async def server() -> dict[str, Any]:
        return {"name": "jrm-serve", "version": version("jrm-serve"), "extensions": []}

    @router.get(V2_LIVE)
    async def live() -> dict[str, bool]:
        return {"live": True}

    @router.get(V2_READY)
    async def ready() -> Response:
        return told(lambda _model: {"ready": True})

    @router.get("/v2/models/{name}/ready")
    async def model_ready(name: str) -> Response:
        return told(lambda _model: {"name": name, "ready": True}, name)

    @router.get("/v2/models/{name}")
    async def metadata(name: str) -> Response:
        return told(lambda model: kserve.metadata(name, model), name)


def _json(sent: Sent) -> Any:
    return _json_of(sent, sent.headers.get("content-type", ""))


def _json_or_unsaid(sent: Sent) -> Any:
    """Some clients of KServe leave the type out."""
    return _json_of(sent, sent.headers.get("content-type", "application/json"))


def _json_of(sent: Sent, content_type: str) -> Any:
    encoding = sent.headers.get("content-encoding", "identity")
    return load_json_body(content_type, sent.body, content_encoding=encoding)
