"""``POST /v1/rerank`` in the shape of vLLM, Jina and Cohere: edits, ranked for their source and instruction.

The query's content holds the source images and the instruction, each document's content one edited image.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from fastapi.responses import JSONResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError
from starlette.responses import Response

from jrm_client.protocol import DEFAULT_TIMEOUT_MS
from jrm_service.api.errors import domain_error_reply
from jrm_service.api.guards import patience_ms
from jrm_service.api.parse import check_count, invalid, read_base64
from jrm_service.api.score_path import IncomingRequest, ParsedRequest, ScoredRequest
from jrm_service.errors import InvalidRequest, JRMError, UnknownModel
from jrm_service.images.reader import ImageInput

from .candidates import Outcome, WireCandidate, ask, scores
from .rewards import Rewards


class _Sent(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class _URL(_Sent):
    url: str


class _Part(_Sent):
    """A text or an image, as ``type`` says. One model for both, so that error messages name only fields."""

    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: _URL | None = None

    @model_validator(mode="after")
    def _has_field_of_type(self) -> Self:
        if getattr(self, self.type) is None:
            raise PydanticCustomError("missing", "the field '{name}' is missing", {"name": self.type})
        return self


class _Content(_Sent):
    content: Annotated[list[_Part], Field(fail_fast=True)]

    def images(self, name: str) -> list[ImageInput]:
        """The images, named after their places."""
        return [
            _read(f"{name}.content[{place}].image_url.url", part.image_url.url)
            for place, part in enumerate(self.content)
            if part.type == "image_url" and part.image_url is not None
        ]

    @property
    def text(self) -> str:
        """The texts joined, possibly as long as the body."""
        return "\n".join(part.text for part in self.content if part.type == "text" and part.text is not None)


def _listed(documents: Any) -> Any:
    """Older vLLM sends an object instead of a list; each of its images is a document."""
    if not isinstance(documents, dict):
        return documents
    parts = documents.get("content")
    if isinstance(parts, list) and all(isinstance(part, dict) and part.get("type") == "image_url" for part in parts):
        return [{"content": [part]} for part in parts]
    return [documents]


class _Document(_Sent):
    query: _Content
    documents: Annotated[list[_Content], Field(fail_fast=True), BeforeValidator(_listed)]
    model: str | None = None
    top_n: Annotated[int, Field(ge=0)] | None = None
    return_documents: bool = False


class RerankWire:
    """Implements Wire."""

    name = "rerank"
    timeout_ms = DEFAULT_TIMEOUT_MS

    def __init__(self, rewards: Rewards) -> None:
        self._rewards = rewards

    def takes(self, content: Any) -> bool:
        """It has routes of its own."""
        return True

    def read(self, content: Any, incoming: IncomingRequest) -> ParsedRequest:
        """Every document is a candidate. Raises InvalidRequest, PayloadTooLarge, UnknownModel."""
        try:
            body = _Document.model_validate(content)
        except ValidationError as error:
            raise invalid(error, own=0) from None
        if body.model is not None and body.model not in self._rewards.names(incoming.model):
            raise UnknownModel(f"no model is called '{body.model[:64]}'", param="model")
        check_count(len(body.documents), incoming.max_candidates)
        sources, instruction = body.query.images("query"), body.query.text
        candidates = [
            WireCandidate(f"documents[{number}]", sources, instruction, _edited(number, document))
            for number, document in enumerate(body.documents)
        ]

        def answer(outcomes: Sequence[Outcome], scored: ScoredRequest) -> Response:
            return self._answer(body, outcomes, scored)

        timeout_ms = patience_ms(incoming.headers, self.timeout_ms)
        return ask(candidates, answer, timeout_ms=timeout_ms)

    def refuse(self, error: JRMError) -> Response:
        """An error reply in OpenAI's shape, as vLLM sends."""
        return domain_error_reply(error)

    def _answer(self, request: _Document, outcomes: Sequence[Outcome], scored: ScoredRequest) -> Response:
        numbers = [self._rewards.number(score, scored.model) for score in scores(outcomes)]
        ranked = sorted(range(len(numbers)), key=lambda number: numbers[number], reverse=True)
        results: list[dict[str, Any]] = [
            {"index": number, "document": _echo(request.documents[number], request), "relevance_score": numbers[number]}
            for number in ranked[: request.top_n or len(ranked)]
        ]
        tokens = scored.result.tokens
        body = {
            "id": f"rerank-{uuid.uuid4().hex}",
            "model": scored.model.name,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            "results": results,
        }
        return JSONResponse(body)


def _edited(number: int, document: _Content) -> ImageInput:
    images = document.images(f"documents[{number}]")
    if len(images) != 1:
        raise InvalidRequest(f"documents[{number}]: {len(images)} images, must be one, the edited image")
    return images[0]


def _read(name: str, url: str) -> ImageInput:
    if url[:5].lower() != "data:":
        raise InvalidRequest(f"{name}: not a data URL, and other URLs are not fetched", param=name)
    return read_base64(name, url)


def _echo(document: _Content, request: _Document) -> dict[str, Any]:
    """vLLM returns each document; images are returned only if ``return_documents`` asks for them."""
    return {
        "text": None,
        "multi_modal": document.model_dump(exclude_none=True)["content"] if request.return_documents else None,
    }
