"""``POST /v1/score``: read, parse, score, answer."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Sequence

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from jrm_client.protocol import (
    CandidateErrorBody,
    CandidateFailure,
    CandidateScore,
    DimensionScore,
    ErrorResponse,
    GroupResult,
    ScoreResponse,
    Timings,
    Usage,
)
from jrm_service.errors import BodyTooLarge, CandidateError, DeadlineExceeded, Overloaded, RequestTimeout
from jrm_service.scoring.service import GroupInput, ScoreResult, ScoreService
from jrm_service.scoring.types import Score

from .errors import UnreadBodyReply, domain_error_reply, error_reply
from .guards import BodyReader, patience_ms, unless_disconnected
from .limits import CandidateQuota, charged
from .openapi import SCORE_REQUEST_BODY
from .parse import parse_score_request
from .record import DISCONNECTED, RequestRecord, record_of

_CLIENT_CLOSED = 499  # nobody reads it; it is what the metrics show


def score_router(
    service: Callable[[], ScoreService], bodies: BodyReader, quota: CandidateQuota, *, max_candidates: int
) -> APIRouter:
    """``service`` gives the running service, or raises NotReady; ``quota`` counts the candidates of API keys."""
    router = APIRouter(tags=["score"])

    async def score(request: Request) -> Response:
        """Rewards from the discriminative head, for groups of edits or one pair.

        What else is scored at the same moment changes a reward by rounding alone: by at most 1e-5 in float32, and by
        up to 0.024 in bfloat16.
        """
        started, clock = time.perf_counter(), asyncio.get_running_loop().time
        arrived = clock()
        record = record_of(request.scope)
        scorer = service()
        tenant = record.key.name if record.key else ""
        patience_s = patience_ms(request.headers) / 1e3
        try:
            scorer.line.check(tenant, patience_s)
            async with bodies.read(request, tenant=tenant, deadline=arrived + patience_s) as body:
                record.body_bytes = len(body)
                parsed = await run_in_threadpool(
                    parse_score_request,
                    request.headers.get("content-type", ""),
                    body,
                    content_encoding=request.headers.get("content-encoding", "identity"),
                    max_candidates=max_candidates,
                )
                body.clear()
                record.candidates = sum(len(group.edits) for group in parsed.groups)
                async with charged(quota, record.key, record.candidates):
                    work = scorer.score(parsed.groups, deadline=arrived + parsed.timeout_ms / 1e3, tenant=tenant)
                    record.scoring_began = time.perf_counter()
                    result = await unless_disconnected(request, work)
                    record.scoring_ended = time.perf_counter()
        except ClientDisconnect:
            record.error = DISCONNECTED
            return Response(status_code=_CLIENT_CLOSED)
        except (BodyTooLarge, DeadlineExceeded, Overloaded, RequestTimeout) as error:
            return UnreadBodyReply(domain_error_reply(error))
        return _reply(scorer, parsed.groups, result, time.perf_counter() - started, record)

    for path in ("/v1/score", "/score"):
        router.add_api_route(
            path,
            score,
            methods=["POST"],
            operation_id=f"score{path.replace('/', '_')}",
            response_model=ScoreResponse,
            responses={
                status: {"model": ErrorResponse} for status in (400, 401, 408, 413, 415, 422, 429, 500, 503, 504)
            },
            openapi_extra={"requestBody": SCORE_REQUEST_BODY},
        )
    return router


def _reply(
    scorer: ScoreService, asked: Sequence[GroupInput], result: ScoreResult, seconds: float, record: RequestRecord
) -> Response:
    groups = [
        GroupResult(index=n, scores=_results(group, outcomes, cached))
        for n, (group, outcomes, cached) in enumerate(zip(asked, result.groups, result.cached, strict=True))
    ]
    outcomes = [outcome for group in result.groups for outcome in group]
    _note(record, result, [score for group in groups for score in group.scores])
    if not any(isinstance(outcome, Score) for outcome in outcomes):
        first = next(outcome for outcome in outcomes if isinstance(outcome, CandidateError))
        return error_reply(first.code, str(first), groups=groups)
    response = ScoreResponse(
        id=f"score-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=scorer.model.name,
        fingerprint=scorer.model.fingerprint,
        precision=scorer.model.precision,
        groups=groups,
        usage=Usage(
            candidates=len(outcomes),
            images=result.images,
            tokens=result.tokens,
            tokens_computed=result.tokens_computed,
        ),
        timings_ms=Timings(
            preprocess=round(result.preprocess_ms, 3),
            queue=round(result.queue_ms, 3),
            inference=round(result.inference_ms, 3),
            total=round(seconds * 1e3, 3),
        ),
    )
    return JSONResponse(response.model_dump(mode="json"))


def _note(record: RequestRecord, result: ScoreResult, scores: Sequence[CandidateScore | CandidateFailure]) -> None:
    record.failed = sum(isinstance(score, CandidateFailure) for score in scores)
    record.cached = sum(isinstance(score, CandidateScore) and score.cached for score in scores)
    record.images = result.images
    record.tokens = result.tokens
    record.tokens_computed = result.tokens_computed
    record.preprocess_ms = result.preprocess_ms
    record.queue_ms = result.queue_ms
    record.inference_ms = result.inference_ms


def _results(
    group: GroupInput, outcomes: Sequence[Score | CandidateError], cached: Sequence[bool]
) -> list[CandidateScore | CandidateFailure]:
    return [
        _result(index, outcome, was_cached, group)
        for index, (outcome, was_cached) in enumerate(zip(outcomes, cached, strict=True))
    ]


def _result(
    index: int, outcome: Score | CandidateError, cached: bool, group: GroupInput
) -> CandidateScore | CandidateFailure:
    if isinstance(outcome, CandidateError):
        param = group.field(outcome.param or group.edits[index].name)
        body = CandidateErrorBody(code=outcome.code, message=str(outcome), param=param)
        return CandidateFailure(index=index, error=body)
    return CandidateScore(
        index=index,
        reward=outcome.reward,
        reward_std=outcome.reward_std,
        cached=cached,
        dimensions={name: DimensionScore(mean=d.mean, std=d.std) for name, d in outcome.dimensions.items()},
    )
