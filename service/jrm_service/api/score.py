"""``POST /v1/score``: the route, and our own format of requests and replies."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.responses import Response

from jrm_client.protocol import (
    DEFAULT_TIMEOUT_MS,
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
from jrm_service.errors import CandidateError, JRMError
from jrm_service.scoring.service import GroupInput
from jrm_service.scoring.types import Scale, Score

from .errors import domain_error_reply, error_reply
from .openapi import SCORE_REQUEST_BODY
from .parse import load_score_request, read_score_request
from .score_path import IncomingRequest, ParsedRequest, ScoredRequest, ScorePath, Wire, outcomes_of


class OwnWire:
    """Implements Wire: the HTTP contract of ``jrm_client.protocol``."""

    name = ""
    timeout_ms = DEFAULT_TIMEOUT_MS

    def takes(self, content: Any) -> bool:
        """Takes everything: what no other wire takes gets our own errors."""
        return True

    def read(self, content: Any, incoming: IncomingRequest) -> ParsedRequest:
        """Read any of the three forms. Raises InvalidRequest, PayloadTooLarge."""
        parsed = read_score_request(content, max_candidates=incoming.max_candidates)
        return ParsedRequest(parsed.groups, parsed.timeout_ms, partial(_reply, parsed.groups))

    def refuse(self, error: JRMError) -> Response:
        """An error reply in OpenAI's shape."""
        return domain_error_reply(error)


def score_router(path: ScorePath, guests: Sequence[Wire] = ()) -> APIRouter:
    """Return the routes. ``guests`` are wires whose clients send other JSON documents to the same routes."""
    router = APIRouter(tags=["score"])
    wires = [*guests, OwnWire()]

    async def score(request: Request) -> Response:
        """Rewards from the discriminative head, for groups of edits or one pair.

        Other candidates in the same batch change a reward only by rounding: by at most 1e-5 in float32, and by up to
        0.030 in bfloat16.
        """
        return await path.serve(request, _load, wires)

    for route in ("/v1/score", "/score"):
        router.add_api_route(
            route,
            score,
            methods=["POST"],
            operation_id=f"score{route.replace('/', '_')}",
            response_model=ScoreResponse,
            responses={
                status: {"model": ErrorResponse} for status in (400, 401, 408, 413, 415, 422, 429, 500, 503, 504)
            },
            openapi_extra={"requestBody": SCORE_REQUEST_BODY},
        )
    return router


def _load(incoming: IncomingRequest) -> Any:
    return load_score_request(
        incoming.headers.get("content-type", ""),
        incoming.body,
        content_encoding=incoming.headers.get("content-encoding", "identity"),
    )


def _reply(inputs: Sequence[GroupInput], scored: ScoredRequest) -> Response:
    result, model = scored.result, scored.model
    groups = [
        GroupResult(index=n, scores=_results(group, outcomes, cached, model.scale))
        for n, (group, outcomes, cached) in enumerate(zip(inputs, result.groups, result.cached, strict=True))
    ]
    outcomes = outcomes_of(result)
    if not any(isinstance(outcome, Score) for outcome in outcomes):
        first = groups[0].scores[0]
        assert isinstance(first, CandidateFailure)
        return error_reply(first.error.code, first.error.message, param=first.error.param, groups=groups)
    response = ScoreResponse(
        id=f"score-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=model.name,
        fingerprint=model.fingerprint,
        precision=model.precision,
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
            total=round(scored.seconds * 1e3, 3),
        ),
    )
    return JSONResponse(response.model_dump(mode="json"))


def _results(
    group: GroupInput,
    outcomes: Sequence[Score | CandidateError],
    cached: Sequence[bool],
    scale: Scale | None,
) -> list[CandidateScore | CandidateFailure]:
    return [
        _failure(index, outcome, group)
        if isinstance(outcome, CandidateError)
        else _score(index, outcome, was_cached, scale)
        for index, (outcome, was_cached) in enumerate(zip(outcomes, cached, strict=True))
    ]


def _failure(index: int, error: CandidateError, group: GroupInput) -> CandidateFailure:
    param = group.field(error.param or group.edits[index].name)
    return CandidateFailure(index=index, error=CandidateErrorBody(code=error.code, message=str(error), param=param))


def _score(index: int, score: Score, cached: bool, scale: Scale | None) -> CandidateScore:
    return CandidateScore(
        index=index,
        reward=score.reward,
        reward_std=score.reward_std,
        normalized=None if scale is None else scale.normalized(score.reward),
        cached=cached,
        dimensions={name: DimensionScore(mean=d.mean, std=d.std) for name, d in score.dimensions.items()},
    )
