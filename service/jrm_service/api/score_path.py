"""The path from a request to its scores, which all wires share. A wire adds how bodies are read and replies written."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from jrm_service.errors import CandidateError, InternalError, InvalidRequest, JRMError, RequestError
from jrm_service.scoring.service import GroupInput, ScoreResult, ScoreService
from jrm_service.scoring.types import Score, ServedModel

from .access_log import DISCONNECTED, RequestRecord, record_of
from .errors import UnreadBodyReply
from .guards import BodyReader, patience_ms, unless_disconnected
from .limits import CandidateQuota, charged
from .watch.recorder import Recorder

logger = logging.getLogger(__name__)

_CLIENT_CLOSED = 499  # only metrics and logs show it


@dataclass(frozen=True, slots=True)
class IncomingRequest:
    """A request as it arrived. ``path`` has the parameters of its route, ``model`` is the model that scores it.

    ``max_candidates`` of a request and ``max_sources`` of a candidate are limits that a wire checks before it reads an
    image.
    """

    headers: Headers
    path: Mapping[str, str]
    body: bytearray
    model: ServedModel
    max_candidates: int
    max_image_pixels: int
    max_sources: int


@dataclass(frozen=True, slots=True)
class ScoredRequest:
    """The outcome of a request, ``seconds`` after it arrived."""

    model: ServedModel
    result: ScoreResult
    seconds: float


@dataclass(frozen=True, slots=True)
class ParsedRequest:
    """A request that was read. ``answer`` makes the reply, or raises a CandidateError that fails the whole request."""

    groups: Sequence[GroupInput]
    timeout_ms: int
    answer: Callable[[ScoredRequest], Response]


class Wire(Protocol):
    """The format that one kind of client uses for its requests and expects of replies.

    ``timeout_ms`` is how long its requests may take unless they set a timeout themselves.
    """

    name: str
    timeout_ms: int

    def takes(self, content: Any) -> bool:
        """Whether a body has this format: several may share a route."""
        ...

    def read(self, content: Any, incoming: IncomingRequest) -> ParsedRequest:
        """Read a body's content; runs in a thread. Raises RequestError."""
        ...

    def refuse(self, error: JRMError) -> Response:
        """The reply to a request that failed as a whole."""
        ...


class ScorePath:
    """Takes score requests through the waiting line, body limits, quota and scoring, and replies.

    Args:
        service: returns the running service if it is awake within the given seconds; or raises NotReady, Draining,
            Sleeping or DeadlineExceeded.
        bodies: reads bodies within their limits.
        quota: counts the candidates of API keys.
        max_candidates: of one request.
        max_image_pixels: of one image.
        recorder: keeps scored groups for /v1/watch; None keeps nothing.
    """

    def __init__(
        self,
        service: Callable[[float], Awaitable[ScoreService]],
        bodies: BodyReader,
        quota: CandidateQuota,
        *,
        max_candidates: int,
        max_image_pixels: int,
        recorder: Recorder | None = None,
    ) -> None:
        self._service = service
        self._bodies = bodies
        self._quota = quota
        self._max_candidates = max_candidates
        self._max_image_pixels = max_image_pixels
        self._recorder = recorder

    async def serve(self, request: Request, load: Callable[[IncomingRequest], Any], wires: Sequence[Wire]) -> Response:
        """Answer a request of one of ``wires``, whose bodies ``load`` decodes.

        Errors before the body tells which wire it is are those of the last wire. Never raises: errors become replies in
        the wire's format, and are logged where that wire's clients may hide them from their users.
        """
        record = record_of(request.scope)
        wire, unread = wires[-1], False

        def read(incoming: IncomingRequest) -> ParsedRequest:
            nonlocal wire
            content = load(incoming)
            for wire in wires:
                if wire.takes(content):
                    record.wire = wire.name
                    return wire.read(content, incoming)
            raise InvalidRequest("the body is in none of the formats that this route accepts")

        record.wire = wire.name
        try:
            started, arrived = time.perf_counter(), asyncio.get_running_loop().time()
            tenant = record.key.name if record.key else ""
            patience_s = patience_ms(request.headers, wire.timeout_ms) / 1e3
            unread = True
            scorer = await self._service(patience_s)
            scorer.line.check(tenant, patience_s - (asyncio.get_running_loop().time() - arrived))
            reading = self._bodies.read(request, tenant=tenant, deadline=arrived + patience_s)
            async with scorer.in_progress(), reading as body:
                unread = False
                record.body_bytes = len(body)
                incoming = IncomingRequest(
                    request.headers,
                    request.path_params,
                    body,
                    scorer.model,
                    self._max_candidates,
                    self._max_image_pixels,
                    scorer.preparer.max_sources,
                )
                parsed = await run_in_threadpool(read, incoming)
                body.clear()
                record.candidates = sum(len(group.edits) for group in parsed.groups)
                async with charged(self._quota, record.key, record.candidates):
                    work = scorer.score(parsed.groups, deadline=arrived + parsed.timeout_ms / 1e3, tenant=tenant)
                    record.scoring_began = time.perf_counter()
                    result = await unless_disconnected(request, work)
                    record.scoring_ended = time.perf_counter()
            _note(record, result)
            reply = parsed.answer(ScoredRequest(scorer.model, result, time.perf_counter() - started))
            if self._recorder is not None:  # recorded after the reply was sent, if that takes no waiting
                offer = partial(self._recorder.offer, parsed.groups, result, model=scorer.model, record=record)
                asyncio.get_running_loop().call_soon(offer)
            return reply
        except ClientDisconnect:
            record.error = DISCONNECTED
            return Response(status_code=_CLIENT_CLOSED)
        except JRMError as error:
            reply = refusal(record, wire, error)
            return UnreadBodyReply(reply) if unread else reply
        except Exception:
            logger.exception("request %s failed", record.request_id)
            reply = refusal(record, wire, InternalError("internal error"))
            return UnreadBodyReply(reply) if unread else reply


def outcomes_of(result: ScoreResult) -> list[Score | CandidateError]:
    """The outcomes of all groups, in order."""
    return [outcome for group in result.groups for outcome in group]


def refusal(record: RequestRecord, wire: Wire, error: JRMError) -> Response:
    """The reply in the wire's format; the log has what its clients may hide from their users."""
    record.wire, record.error, record.refused = wire.name, error.code, isinstance(error, RequestError)
    if wire.name:  # clients other than our own seldom show the message
        reason = "".join(character if character.isprintable() else "?" for character in str(error))
        logger.warning("request %s over the wire %s: %s: %s", record.request_id, wire.name, error.code, reason)
    return wire.refuse(error)


def _note(record: RequestRecord, result: ScoreResult) -> None:
    outcomes = outcomes_of(result)
    failures = [outcome for outcome in outcomes if isinstance(outcome, CandidateError)]
    record.failed = len(failures)
    if len(failures) == len(outcomes):
        record.error = failures[0].code
    record.cached = sum(cached for group in result.cached for cached in group)
    record.images = result.images
    record.tokens = result.tokens
    record.tokens_computed = result.tokens_computed
    record.preprocess_ms = result.preprocess_ms
    record.queue_ms = result.queue_ms
    record.inference_ms = result.inference_ms
