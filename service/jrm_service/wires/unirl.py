"""UniRL (Tencent-Hunyuan): ``POST /score`` with ``requests``, ``GET /rewards``.

A candidate is a history of turns with a text and an image each; the last image is the edited one, the earlier ones are
sources. A candidate without a score is missing in ``results`` and has its reason in ``errors``: the reply is 200 even
if no candidate has a score. Any other status fails the whole batch: its client retries 429 and 5xx at most twice, one
second apart, and gives up on other 4xx at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi.responses import JSONResponse
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError
from starlette.responses import Response

from jrm_service.api.errors import headers_of, reason_of, status_of
from jrm_service.api.guards import patience_ms
from jrm_service.api.parse import check_count, invalid, read_base64
from jrm_service.api.score_path import IncomingRequest, ParsedRequest, ScoredRequest
from jrm_service.errors import InvalidCandidate, InvalidRequest, JRMError
from jrm_service.images.reader import ImageInput
from jrm_service.scoring.types import Score, ServedModel

from .candidates import Outcome, WireCandidate, ask, is_blank
from .rewards import Rewards

_IDENTITY = ("request_id", "sample_id", "group_id", "source_rank", "policy_version", "idempotency_key")


class _Sent(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")  # newer clients send more fields


class _Turn(_Sent):
    text: str | None = None
    image_b64: str | None = None
    video_b64: None = None


def _plain(value: Any) -> Any:
    if isinstance(value, list | dict):
        raise PydanticCustomError("identity", "must be text, a number or null")
    return value


_Identity = Annotated[Any, AfterValidator(_plain)]  # it is sent back unchanged


class _Entry(_Sent):
    history: Annotated[list[_Turn], Field(min_length=1, fail_fast=True)]
    required_rewards: Annotated[list[str], Field(min_length=1, fail_fast=True)]
    request_id: _Identity = None
    sample_id: _Identity = None
    group_id: _Identity = None
    source_rank: _Identity = None
    policy_version: _Identity = None
    idempotency_key: _Identity = None


class _Document(_Sent):
    requests: Annotated[list[_Entry], Field(fail_fast=True)]
    protocol_version: Literal["1"] | None = None
    grad_mode: Literal[False] | None = None


class UniRLWire:
    """Implements Wire. Its client gives up after 300 s, and its own server after 120."""

    name = "unirl"
    timeout_ms = 120_000

    def __init__(self, rewards: Rewards) -> None:
        self._rewards = rewards

    def takes(self, content: Any) -> bool:
        """It shares its route with our own requests, which have no such key."""
        return isinstance(content, dict) and "requests" in content

    def read(self, content: Any, incoming: IncomingRequest) -> ParsedRequest:
        """Every entry of ``requests`` is a candidate. Raises InvalidRequest, PayloadTooLarge."""
        try:
            document = _Document.model_validate(content)
        except ValidationError as error:
            raise invalid(error, own=0) from None
        check_count(len(document.requests), incoming.max_candidates)
        known = self._rewards.names(incoming.model)
        for entry in document.requests:
            for name in entry.required_rewards:
                if name not in known:
                    raise InvalidRequest(f"unknown reward: {name[:64]}", param="required_rewards")

        def answer(outcomes: Sequence[Outcome], scored: ScoredRequest) -> Response:
            return self._answer(document.requests, outcomes, scored.model)

        return ask(
            [_candidate(number, entry, incoming) for number, entry in enumerate(document.requests)],
            answer,
            timeout_ms=patience_ms(incoming.headers, self.timeout_ms),
        )

    def refuse(self, error: JRMError) -> Response:
        """An error reply in FastAPI's shape, as its own server sends."""
        return JSONResponse({"detail": reason_of(error)}, status_of(error), headers_of(error))

    def _answer(self, entries: Sequence[_Entry], outcomes: Sequence[Outcome], model: ServedModel) -> Response:
        body: dict[str, Any] = {
            "protocol_version": "1",
            "results": [
                dict.fromkeys(entry.required_rewards, self._metrics(outcome, model))
                if isinstance(outcome, Score)
                else {}
                for entry, outcome in zip(entries, outcomes, strict=True)
            ],
            "errors": [
                {} if isinstance(outcome, Score) else dict.fromkeys(entry.required_rewards, str(outcome))
                for entry, outcome in zip(entries, outcomes, strict=True)
            ],
        }
        if any(entry.request_id is not None for entry in entries):
            body["identities"] = [
                {name: getattr(entry, name) for name in _IDENTITY} | {"scorer_version": model.fingerprint}
                for entry in entries
            ]
        return JSONResponse(body)

    def _metrics(self, score: Score, model: ServedModel) -> dict[str, float]:
        """The reward, which its client uses unless it is configured to average all numbers.

        So the dimensions are included only if their average is the reward: both ways then give the same.
        """
        reward = {"reward": self._rewards.number(score, model)}
        if self._rewards.normalized or not _is_plain_mean(model):
            return reward
        return reward | {name: dimension.mean for name, dimension in score.dimensions.items()}


def _candidate(number: int, entry: _Entry, incoming: IncomingRequest) -> WireCandidate:
    """The candidate of an entry. An entry without an image or instruction becomes a candidate that fails by itself."""
    name = f"requests[{number}]"
    images = [
        (f"{name}.history[{place}].image_b64", turn.image_b64)
        for place, turn in enumerate(entry.history)
        if turn.image_b64 is not None
    ]
    instruction = next((turn.text for turn in reversed(entry.history) if turn.text), "")
    problem = None
    if entry.history[-1].image_b64 is None:
        problem = "the last turn has no image"
    elif is_blank(instruction):
        problem = "no turn has an instruction"
    if problem is not None:
        failed = ImageInput.of(name, InvalidCandidate(problem))
        return WireCandidate(name, [failed] * min(1, incoming.max_sources), name, failed)
    *sources, edited = (read_base64(field, text) for field, text in images)
    return WireCandidate(name, sources, instruction, edited)


def _is_plain_mean(model: ServedModel) -> bool:
    reward = model.description.get("reward", {})
    weights = reward.get("weights", {})
    everything = set(weights) == set(model.description.get("dimensions") or ())
    return bool(weights) and everything and reward.get("combine") == "mean" and len(set(weights.values())) == 1
