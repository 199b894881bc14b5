"""Routes for the server's operator: sleep, wake, reload. They exist only with ``--admin``."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from fastapi import APIRouter, Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from jrm_client.protocol import ErrorResponse, OperatorReply, ReloadRequest, SleepRequest
from jrm_service.errors import (
    BadCheckpoint,
    BodyTooLarge,
    CheckpointError,
    ExplainRunning,
    Forbidden,
    InvalidRequest,
    RequestTimeout,
)
from jrm_service.scoring.backend import SleepLevel
from jrm_service.scoring.types import ServedModel

from .access_log import record_of
from .keys import Scopes
from .parse import invalid, load_json_body

logger = logging.getLogger(__name__)

SCOPE = "admin"
PATHS = frozenset({"/v1/sleep", "/v1/wake", "/v1/reload"})

_MAX_BODY_BYTES = 65_536
_BODY_TIMEOUT_S = 10.0
_RequestT = TypeVar("_RequestT", bound=BaseModel)
_Statuses = dict[int | str, dict[str, Any]]


class ScoringControl(Protocol):
    """What these routes do to the scoring side of the server."""

    def model(self) -> ServedModel:
        """The model that is served."""
        ...

    async def sleep(self, level: SleepLevel) -> SleepLevel:
        """Release the devices; returns the level that is now in force."""
        ...

    async def wake(self) -> None:
        """Take the devices again. Raises CheckpointError."""
        ...

    async def reload(self, checkpoint: Path, *, beside: bool) -> None:
        """Serve another checkpoint. Raises CheckpointError."""
        ...


def admin_router(
    scoring: ScoringControl | None, scopes: Scopes, *, explains: bool, reload_root: Path | None
) -> APIRouter:
    """Return the operators' routes.

    ``scoring``: None if this process does not score. ``explains``: whether vLLM holds a device too. ``reload_root``:
    the folder that checkpoints are loaded from; None if none can be loaded.
    """
    router = APIRouter(tags=["operators"])
    errors: _Statuses = {status: {"model": ErrorResponse} for status in (400, 401, 403, 408, 409, 413, 415, 503)}

    def control_for(request: Request, *, alone: bool) -> ScoringControl:
        """Return the scoring side, if the caller may operate it and, for ``alone``, vLLM holds no device.

        Raises Forbidden, ExplainRunning.
        """
        scopes.require(record_of(request.scope).key, SCOPE)
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
            raise Forbidden("a page of another origin may not operate this server")
        if scoring is None or (alone and explains):
            raise ExplainRunning(
                "this server writes critiques, and vLLM cannot release its device: serve scores from a separate process"
            )
        return scoring

    def reply(scoring: ScoringControl, began: float, level: SleepLevel | None = None) -> OperatorReply:
        model = scoring.model()
        return OperatorReply(
            status="ready" if level is None else "sleeping",
            level=level,
            model=model.name,
            fingerprint=model.fingerprint,
            seconds=round(time.perf_counter() - began, 3),
        )

    @router.post("/v1/sleep", response_model=OperatorReply, responses=errors)
    async def sleep(request: Request) -> OperatorReply:
        """Finish running work and release the devices; 200 once they are free. Repeat it for a deeper sleep."""
        began = time.perf_counter()
        scoring = control_for(request, alone=True)
        body = await _read(request, SleepRequest)
        return reply(scoring, began, await scoring.sleep(body.level))

    @router.post("/v1/wake", response_model=OperatorReply, responses=errors)
    async def wake(request: Request) -> OperatorReply:
        """Take the devices again; 200 once the server is ready. It waits for a sleep that is still in progress."""
        began = time.perf_counter()
        scoring = control_for(request, alone=False)
        with _as_refusal():
            await scoring.wake()
        return reply(scoring, began)

    @router.post("/v1/reload", response_model=OperatorReply, responses=errors)
    async def reload(request: Request) -> OperatorReply:
        """Serve another checkpoint; 200 once it is served. A checkpoint that fails its self-test changes nothing."""
        began = time.perf_counter()
        scoring = control_for(request, alone=True)
        body = await _read(request, ReloadRequest)
        if reload_root is None:
            raise InvalidRequest(
                "this server loads no checkpoints: start it with --reload-root, without --backend fake"
            )
        folder = await asyncio.to_thread(_under, reload_root, body.checkpoint)
        with _as_refusal():
            await scoring.reload(folder, beside=body.load == "beside")
        return reply(scoring, began)

    return router


@contextmanager
def _as_refusal() -> Iterator[None]:
    """Raise BadCheckpoint, with the problems of a checkpoint that could not be loaded, for the caller."""
    try:
        yield
    except CheckpointError as error:
        logger.error("the checkpoint is not served: %s", error)
        raise BadCheckpoint("; ".join(error.problems)) from None


def _under(root: Path, name: str) -> Path:
    """The folder that a request names, symlinks resolved. Raises InvalidRequest for one that is not under the root."""
    try:
        base, folder = root.resolve(strict=True), (root / name).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):  # not there; a null character; links in a circle
        raise InvalidRequest("checkpoint: no such folder under the server's reload root", param="checkpoint") from None
    if not folder.is_relative_to(base) or not folder.is_dir():
        raise InvalidRequest("checkpoint: no such folder under the server's reload root", param="checkpoint")
    return folder


async def _read(request: Request, kind: type[_RequestT]) -> _RequestT:
    """A small JSON body; an empty one means all defaults.

    It does not enter the waiting line: the requests there may be waiting for this one. Raises InvalidRequest,
    BodyTooLarge, RequestTimeout, UnsupportedMediaType.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_TIMEOUT_S):
            async for piece in request.stream():
                body += piece
                if len(body) > _MAX_BODY_BYTES:
                    raise BodyTooLarge(f"over {_MAX_BODY_BYTES:,} bytes")
    except ClientDisconnect:
        raise InvalidRequest("the body broke off") from None  # for the log: the caller has gone
    except TimeoutError:
        raise RequestTimeout(f"the body did not arrive within {_BODY_TIMEOUT_S:g} s") from None
    headers = request.headers
    document = (
        load_json_body(
            headers.get("content-type", ""), body, content_encoding=headers.get("content-encoding", "identity")
        )
        if body
        else {}
    )
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise invalid(error, own=0) from None
