"""A batch -> the parts of a multipart body; a reply -> one outcome per candidate. Pure.

Nothing here ever makes up a number: a reply that lacks an index, repeats one, or holds a number that is not finite
raises APIResponseError.
"""

from __future__ import annotations

import html
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
    HTTPStatus.PROXY_AUTHENTICATION_REQUIRED: "put the user and the password into the proxy's URL: http://USER:PASSWORD@HOST",
    HTTPStatus.NOT_FOUND: "check that the base URL is that of JRM Serve",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "send smaller images or fewer candidates, or raise the server's limits",
    HTTPStatus.TOO_MANY_REQUESTS: "the server is at its limit; lower the load or add replicas",
    HTTPStatus.GATEWAY_TIMEOUT: "raise timeout, or lower the load",
}

_SCRIPT = re.compile(r"<(script|style)\b.*?</\1\s*>|<!--.*?-->", re.DOTALL | re.IGNORECASE)
_TAG = re.compile(r"<[^<>]*>")
_EXCERPT = 200


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP reply that was read to its end, from ``replica`` (its URL, as messages name it).

    ``request_id`` is the server's, or else the one that was sent. ``asked`` is the whole URL, and the proxy if any.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    request_id: str
    replica: str = ""
    asked: str = ""


# --- requests ---------------------------------------------------------------------------------------------------------


def multipart(batch: Batch, images: Mapping[str, bytes], timeout_ms: int) -> list[Part]:
    """Return the parts of ``POST /v1/score`` as httpx takes them: ``request`` first, then each distinct image once."""
    distinct = dict.fromkeys(images[key] for key in batch.images)
    names = {data: f"image-{number}" for number, data in enumerate(distinct)}

    def reference(key: str) -> str:
        return f"{protocol.PART_PREFIX}{names[images[key]]}"

    request = protocol.GroupsRequest(
        groups=[
            protocol.Group(
                source=source_value([reference(key) for key in group.sources]),
                instruction=group.instruction,
                edits=[reference(key) for key in group.edits],
            )
            for group in batch.groups
        ],
        timeout_ms=timeout_ms,
    )
    parts: list[Part] = [("request", (None, request.model_dump_json(exclude_none=True).encode(), "application/json"))]
    parts += [(name, (name, data, _media_type(data))) for data, name in names.items()]
    return parts


def source_value(sources: list[str]) -> str | list[str] | None:
    """Return the ``source`` of a request: one image bare, as every server accepts it, several as a list, else None."""
    return sources[0] if len(sources) == 1 else sources or None


def _media_type(data: bytes) -> str:
    if data.startswith(b"\x89PNG"):
        return "image/png"
    return "image/x-portable-pixmap" if data.startswith(b"P6") else "application/octet-stream"


# --- replies ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Names:
    """The caller's names for the parts of a candidate (``pairs[17].edited``)."""

    source: str
    edited: str
    instruction: str


def read_scores(batch: Batch, names: Sequence[Names], reply: Reply) -> dict[int, Score | CandidateError]:
    """Return the outcome of every candidate of ``batch``, by the caller's position.

    ``names`` are the caller's names for the parts of each candidate: they replace places in the request, which the
    caller never saw, in the server's messages. A refusal that carries ``groups`` has an outcome for each candidate, and
    is not a failure of the request. Raises APIStatusError when the request was refused as a whole, APIResponseError
    when the reply breaks the contract.
    """
    groups, origin = _groups(reply)
    outcomes: dict[int, Score | CandidateError] = {}
    for group, result in zip(batch.groups, _in_order(groups, len(batch.groups), "groups", reply), strict=True):
        where = f"groups[{result.index}].scores"
        results = _in_order(result.scores, len(group.edits), where, reply)
        for position, candidate in zip(group.positions, results, strict=True):
            if isinstance(candidate, protocol.CandidateFailure):
                error = candidate.error
                message = _rename(error, names[position])
                outcomes[position] = CandidateError(message, code=error.code, request_id=reply.request_id)
            elif reply.status != HTTPStatus.OK:
                raise APIResponseError(f"status {reply.status} with a score in its body", request_id=reply.request_id)
            else:
                outcomes[position] = _score(candidate, origin, f"{where}[{candidate.index}]", reply)
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
        raise APIResponseError(_unexpected_reply(reply, "is not a JSON object"), request_id=reply.request_id)
    return value


def read_operator_reply(reply: Reply) -> protocol.OperatorReply:
    """Return the reply to an operator's request. Raises as ``read_object`` does."""
    try:
        return protocol.OperatorReply.model_validate(read_object(reply))
    except ValidationError:
        raise APIResponseError(
            _unexpected_reply(reply, "is not an operator's reply"), request_id=reply.request_id
        ) from None


def status_error(reply: Reply) -> APIStatusError:
    """Return the error for a refusal, whether it is from JRM Serve or a page of HTML from a proxy."""
    fields = _json_object(_json_object(_load(reply.body)).get("error"))
    message, code, param = (fields.get(name) for name in ("message", "code", "param"))
    reason = code or responses.get(reply.status, "unknown status")
    text = f"HTTP {reply.status} ({reason}) from {reply.asked or reply.replica or 'the server'}"
    location = reply.headers.get("location")
    if location and 300 <= reply.status < 400:
        text += f": redirects to {location[:_EXCERPT]!r}; redirects are not followed, give that server as base_url"
    elif message:
        text += f": {str(message)[:500]}"
    else:
        page = excerpt(reply)
        text += f": not a reply of JRM Serve, but {page}" if page else ": no explanation in the reply"
    remedy = _REMEDIES.get(reply.status)
    return APIStatusError(
        f"{text}; {remedy}" if remedy else text,
        status=reply.status,
        code=code if isinstance(code, str) else None,
        param=param if isinstance(param, str) else None,
        request_id=reply.request_id,
        retry_after=parse_retry_after(reply.headers.get("retry-after"), time.time()),
    )


def excerpt(reply: Reply) -> str:
    """The first words of a reply that is not from JRM Serve, without markup; empty if there are none."""
    page = reply.body[: 100 * _EXCERPT].decode(errors="replace")
    words = html.unescape(_TAG.sub(" ", _SCRIPT.sub(" ", page)) if "<" in page else page).split()
    shown = "".join(character for character in " ".join(words) if character.isprintable())
    return repr(shown if len(shown) <= _EXCERPT else f"{shown[:_EXCERPT]}…") if shown else ""


def _rename(error: protocol.CandidateErrorBody, names: Names) -> str:
    """The message with the caller's name for the part at fault in place of the server's (``param``)."""
    if error.param is None:
        return error.message
    field = error.param.rpartition(".")[2]
    part, bracket, index = field.partition("[")
    name = {"source": names.source + bracket + index, "instruction": names.instruction}.get(part, names.edited)
    return f"{name}: {error.message.removeprefix(f'{error.param}: ').removeprefix(f'{field}: ')}"


@dataclass(frozen=True, slots=True)
class _Origin:
    """Where the scores of a reply come from."""

    model: str = ""
    fingerprint: str = ""
    precision: str = ""


def _groups(reply: Reply) -> tuple[list[protocol.GroupResult], _Origin]:
    if reply.status == HTTPStatus.OK:
        response = parse(protocol.ScoreResponse, reply)
        return response.groups, _Origin(response.model, response.fingerprint, response.precision)
    if _json_object(_load(reply.body)).get("groups") is None:
        raise status_error(reply)
    return _validate(protocol.ErrorResponse, reply).groups or [], _Origin()


def _validate(model: type[ModelT], reply: Reply) -> ModelT:
    try:
        # Strict: a string or a boolean in place of a number is not a reward.
        return model.model_validate_json(reply.body, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(step) for step in first["loc"]) or "the body"
        what = f"is not a {model.__name__}: {where}: {first['msg']}"
        raise APIResponseError(_unexpected_reply(reply, what), request_id=reply.request_id) from error


def _unexpected_reply(reply: Reply, what: str) -> str:
    page = excerpt(reply)
    begins = f"; it begins with {page}" if page else "; it is empty"
    return f"the reply of {reply.asked or 'the server'} {what}{begins}; is it JRM Serve that answers?"


IndexedT = TypeVar("IndexedT", protocol.GroupResult, protocol.CandidateScore | protocol.CandidateFailure)


def _in_order(items: Sequence[IndexedT], count: int, where: str, reply: Reply) -> list[IndexedT]:
    by_index = {item.index: item for item in items}
    if len(items) != count or by_index.keys() != set(range(count)):
        message = (
            f"the reply has {where} {sorted(item.index for item in items)[:20]} where 0..{count - 1} were asked for"
        )
        raise APIResponseError(message, request_id=reply.request_id)
    return [by_index[index] for index in range(count)]


def _score(candidate: protocol.CandidateScore, origin: _Origin, where: str, reply: Reply) -> Score:
    for name, value in _numbers(candidate):
        if not math.isfinite(value) or (name.endswith("std") and value < 0):
            raise APIResponseError(f"the reply has {where}.{name} = {value}", request_id=reply.request_id)
    dimensions = {name: Dimension(d.mean, d.std) for name, d in candidate.dimensions.items()}
    return Score(
        candidate.reward,
        candidate.reward_std,
        dimensions,
        candidate.cached,
        origin.model,
        origin.fingerprint,
        precision=origin.precision,
        normalized=candidate.normalized,
    )


def _numbers(candidate: protocol.CandidateScore) -> Iterator[tuple[str, float]]:
    yield "reward", candidate.reward
    if candidate.reward_std is not None:
        yield "reward_std", candidate.reward_std
    if candidate.normalized is not None:
        yield "normalized", candidate.normalized
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
