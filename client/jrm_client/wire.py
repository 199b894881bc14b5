"""A batch -> the parts of a multipart body; a reply -> one outcome per candidate. Pure.

Nothing here ever makes up a number: a reply that lacks an index, repeats one, or holds a number that is not finite
raises APIResponseError.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.client import responses
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from . import protocol
from .batching import Batch
from .errors import APIResponseError, APIStatusError, CandidateError
from .results import Dimension, Score
from .retry import parse_retry_after

ModelT = TypeVar("ModelT", bound=BaseModel)
Part = tuple[str, tuple[str | None, bytes, str]]

_REMEDIES: Mapping[int, str] = {
    HTTPStatus.UNAUTHORIZED: "set api_key, or the environment variable JRM_API_KEY",
    HTTPStatus.NOT_FOUND: "check that the base URL is that of JRM Serve",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "send smaller images or fewer candidates, or raise the server's limits",
    HTTPStatus.TOO_MANY_REQUESTS: "the server is at its limit; lower the load or add replicas",
    HTTPStatus.GATEWAY_TIMEOUT: "raise timeout, or lower the load",
}

_PLACE = re.compile(r"^(?:groups\[\d+\]\.)?edits\[\d+\](?=: )")


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP reply that was read to its end, from ``replica`` (its URL, as messages name it).

    ``request_id`` is the server's, or else the one that was sent.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    request_id: str
    replica: str = ""


# --- requests ---------------------------------------------------------------------------------------------------------


def multipart(batch: Batch, images: Mapping[str, bytes], timeout_ms: int) -> list[Part]:
    """Return the parts of ``POST /v1/score`` as httpx takes them: ``request`` first, then each distinct image once."""
    names = {key: f"image-{number}" for number, key in enumerate(batch.images)}

    def reference(key: str) -> str:
        return f"{protocol.PART_PREFIX}{names[key]}"

    request = protocol.GroupsRequest(
        groups=[
            protocol.Group(
                source=reference(group.source),
                instruction=group.instruction,
                edits=[reference(key) for key in group.edits],
            )
            for group in batch.groups
        ],
        timeout_ms=timeout_ms,
    )
    parts: list[Part] = [("request", (None, request.model_dump_json().encode(), "application/json"))]
    parts += [(name, (name, images[key], _media_type(images[key]))) for key, name in names.items()]
    return parts


def _media_type(data: bytes) -> str:
    if data.startswith(b"\x89PNG"):
        return "image/png"
    return "image/x-portable-pixmap" if data.startswith(b"P6") else "application/octet-stream"


# --- replies ----------------------------------------------------------------------------------------------------------


def read_scores(batch: Batch, names: Sequence[str], reply: Reply) -> dict[int, Score | CandidateError]:
    """Return the outcome of every candidate of ``batch``, by the caller's position.

    ``names`` is what the caller calls each edited image: messages that name it by its place in the request, which the
    caller never saw, are put right. A refusal that carries ``groups`` is a set of verdicts, not a failure of the
    request. Raises APIStatusError when the request was refused as a whole, APIResponseError when the reply breaks the
    contract.
    """
    groups, model, fingerprint = _groups(reply)
    outcomes: dict[int, Score | CandidateError] = {}
    for group, result in zip(batch.groups, _in_order(groups, len(batch.groups), "groups", reply), strict=True):
        where = f"groups[{result.index}].scores"
        results = _in_order(result.scores, len(group.edits), where, reply)
        for position, candidate in zip(group.positions, results, strict=True):
            if isinstance(candidate, protocol.CandidateFailure):
                error = candidate.error
                message = _rename(error.message, names[position])
                outcomes[position] = CandidateError(message, code=error.code, request_id=reply.request_id)
            elif reply.status != HTTPStatus.OK:
                raise APIResponseError(f"status {reply.status} with a score in its body", request_id=reply.request_id)
            else:
                outcomes[position] = _score(candidate, model, fingerprint, f"{where}[{candidate.index}]", reply)
    return outcomes


def parse(model: type[ModelT], reply: Reply) -> ModelT:
    """Parse a 200. Raises APIStatusError for any other status, APIResponseError for a body that does not fit."""
    if reply.status != HTTPStatus.OK:
        raise status_error(reply)
    return _validate(model, reply)


def read_object(reply: Reply) -> dict[str, Any]:
    """Return the JSON object of a 200. Raises as ``parse`` does."""
    if reply.status != HTTPStatus.OK:
        raise status_error(reply)
    value = _load(reply.body)
    if not isinstance(value, dict):
        raise APIResponseError(
            "the reply is not a JSON object; is it JRM Serve that answers?", request_id=reply.request_id
        )
    return value


def status_error(reply: Reply) -> APIStatusError:
    """Return the error that a refused request raises, whoever sent it: JRM Serve, or a proxy with a page of HTML."""
    fields = _json_object(_json_object(_load(reply.body)).get("error"))
    message, code, param = (fields.get(name) for name in ("message", "code", "param"))
    reason = code or responses.get(reply.status, "unknown status")
    text = f"HTTP {reply.status} ({reason}): {str(message or 'no explanation in the reply')[:500]}"
    remedy = _REMEDIES.get(reply.status)
    return APIStatusError(
        f"{text}; {remedy}" if remedy else text,
        status=reply.status,
        code=code if isinstance(code, str) else None,
        param=param if isinstance(param, str) else None,
        request_id=reply.request_id,
        retry_after=parse_retry_after(reply.headers.get("retry-after"), time.time()),
    )


def _rename(message: str, name: str) -> str:
    place = _PLACE.match(message)
    return f"{name}{message[place.end() :]}" if place else message


def _groups(reply: Reply) -> tuple[list[protocol.GroupResult], str, str]:
    if reply.status == HTTPStatus.OK:
        response = parse(protocol.ScoreResponse, reply)
        return response.groups, response.model, response.fingerprint
    if _json_object(_load(reply.body)).get("groups") is None:
        raise status_error(reply)
    return _validate(protocol.ErrorResponse, reply).groups or [], "", ""


def _validate(model: type[ModelT], reply: Reply) -> ModelT:
    try:
        # Strict: a string or a boolean in the place of a number is no reward.
        return model.model_validate_json(reply.body, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(step) for step in first["loc"]) or "the body"
        message = f"the reply is not a {model.__name__}: {where}: {first['msg']}; is it JRM Serve that answers?"
        raise APIResponseError(message, request_id=reply.request_id) from error


IndexedT = TypeVar("IndexedT", protocol.GroupResult, protocol.CandidateScore | protocol.CandidateFailure)


def _in_order(items: Sequence[IndexedT], count: int, where: str, reply: Reply) -> list[IndexedT]:
    by_index = {item.index: item for item in items}
    if len(items) != count or by_index.keys() != set(range(count)):
        message = (
            f"the reply has {where} {sorted(item.index for item in items)[:20]} where 0..{count - 1} were asked for"
        )
        raise APIResponseError(message, request_id=reply.request_id)
    return [by_index[index] for index in range(count)]


def _score(candidate: protocol.CandidateScore, model: str, fingerprint: str, where: str, reply: Reply) -> Score:
    for name, value in _numbers(candidate):
        if not math.isfinite(value) or (name.endswith("std") and value < 0):
            raise APIResponseError(f"the reply has {where}.{name} = {value}", request_id=reply.request_id)
    dimensions = {name: Dimension(d.mean, d.std) for name, d in candidate.dimensions.items()}
    return Score(candidate.reward, candidate.reward_std, dimensions, candidate.cached, model, fingerprint)


def _numbers(candidate: protocol.CandidateScore) -> Iterator[tuple[str, float]]:
    yield "reward", candidate.reward
    if candidate.reward_std is not None:
        yield "reward_std", candidate.reward_std
    for name, dimension in candidate.dimensions.items():
        yield f"dimensions.{name}.mean", dimension.mean
        if dimension.std is not None:
            yield f"dimensions.{name}.std", dimension.std


def _load(body: bytes) -> object:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _json_object(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}
