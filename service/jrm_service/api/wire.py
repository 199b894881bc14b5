"""The one way of a request to its scores, and what a wire adds: how a body is read, and how its sender is answered."""

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

from .errors import UnreadBodyReply
from .guards import BodyReader, patience_ms, unless_disconnected
from .limits import CandidateQuota, charged
from .record import DISCONNECTED, RequestRecord, record_of
from .watch.recorder import Recorder

logger = logging.getLogger(__name__)

_CLIENT_CLOSED = 499  # nobody reads it; it is what the metrics show


@dataclass(frozen=True, slots=True)
class Sent:
    """A request as it came. ``path`` holds the parameters of its route, ``model`` is what scores it.

    ``max_candidates`` and ``max_sources`` bound a request and a candidate: a wire checks both before it reads an image.
    """

    headers: Headers
    path: Mapping[str, str]
    body: bytearray
    model: ServedModel
    max_candidates: int
    max_image_pixels: int
    max_sources: int


@dataclass(frozen=True, slots=True)
class Answered:
    """What became of a request; ``seconds`` since it arrived."""

    model: ServedModel
    result: ScoreResult
    seconds: float


@dataclass(frozen=True, slots=True)
class Asked:
    """A body that was understood. ``answer`` makes the reply; it may raise the CandidateError that fails it all."""

    groups: Sequence[GroupInput]
    timeout_ms: int
    answer: Callable[[Answered], Response]


class Wire(Protocol):
    """One kind of client: what its requests say, and what it has to be told.

    ``timeout_ms`` is how long its requests may take, unless they say so themselves.
    """

    name: str
    timeout_ms: int

    def takes(self, content: Any) -> bool:
        """Whether a body's content is of this kind: several kinds may share a route."""
        ...

    def read(self, content: Any, sent: Sent) -> Asked:
        """Understand a body's content; in a thread. Raises RequestError."""
        ...

    def refuse(self, error: JRMError) -> Response:
        """The reply to a request that failed as a whole."""
        ...


class ScorePath:
    """Takes requests for scores through the waiting line, body limits, quota, scoring, and back.

    Args:
        service: the running service, when it is awake within so many seconds; or raises NotReady, Draining, Sleeping
            or DeadlineExceeded.
        bodies: reads bodies within their limits.
        quota: counts the candidates of API keys.
        max_candidates: of one request.
        max_image_pixels: of one image.
        recorder: keeps what was scored, for people to look at; None keeps nothing.
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

    async def serve(self, request: Request, load: Callable[[Sent], Any], wires: Sequence[Wire]) -> Response:
        """Answer a request of one of ``wires``, whose bodies ``load`` decodes.

        Until its content tells which, it is the last one's. Never raises: what goes wrong is told as the wire's clients
        understand it, and what they may hide from their users is in the log.
        """
        record = record_of(request.scope)
        wire, unread = wires[-1], False

        def read(sent: Sent) -> Asked:
            nonlocal wire
            content = load(sent)
            for wire in wires:
                if wire.takes(content):
                    record.wire = wire.name
                    return wire.read(content, sent)
            raise InvalidRequest("the body is none that this route takes")

        record.wire = wire.name
        try:
            started, arrived = time.perf_counter(), asyncio.get_running_loop().time()
            tenant = record.key.name if record.key else ""
            patience_s = patience_ms(request.headers, wire.timeout_ms) / 1e3
            unread = True
            scorer = await self._service(patience_s)
            scorer.line.check(tenant, patience_s - (asyncio.get_running_loop().time() - arrived))
            reading = self._bodies.read(request, tenant=tenant, deadline=arrived + patience_s)
            async with scorer.held(), reading as body:
                unread = False
                record.body_bytes = len(body)
                sent = Sent(
                    request.headers,
                    request.path_params,
                    body,
                    scorer.model,
                    self._max_candidates,
                    self._max_image_pixels,
                    scorer.preparer.max_sources,
                )
                asked = await run_in_threadpool(read, sent)
                body.clear()
                record.candidates = sum(len(group.edits) for group in asked.groups)
                async with charged(self._quota, record.key, record.candidates):
                    work = scorer.score(asked.groups, deadline=arrived + asked.timeout_ms / 1e3, tenant=tenant)
                    record.scoring_began = time.perf_counter()
                    result = await unless_disconnected(request, work)
                    record.scoring_ended = time.perf_counter()
            _note(record, result)
            reply = asked.answer(Answered(scorer.model, result, time.perf_counter() - started))
            if self._recorder is not None:  # which comes after the reply, as far as that goes without waiting
                offer = partial(self._recorder.offer, asked.groups, result, model=scorer.model, record=record)
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
    """The reply as the wire's clients understand it; what they may hide from their users goes into the log."""
    record.wire, record.error, record.refused = wire.name, error.code, isinstance(error, RequestError)
    if wire.name:  # whose clients seldom show what they are told
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
