"""Flow-Factory: ``POST /compute``.

Lists of equal length, with an edit and its condition images at each index. Its client retries any other status than 200
at once, three times, and then says "Failed to connect"; an ``{"error": …}`` in a 200 it shows to its user, and stops.
So every refusal is such a 200: the format has no errors of single candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import Response

from jrm_service.api.errors import reason_of
from jrm_service.api.guards import patience_ms
from jrm_service.api.parse import check_count, invalid, read_base64
from jrm_service.api.score_path import IncomingRequest, ParsedRequest, ScoredRequest
from jrm_service.errors import InvalidRequest, JRMError

from .candidates import Outcome, WireCandidate, ask, check_sources, scores
from .rewards import Rewards


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    prompt: Annotated[list[str], Field(fail_fast=True)]
    image: Annotated[list[str], Field(fail_fast=True)] | None = None
    condition_images: Annotated[list[Annotated[list[str], Field(fail_fast=True)]], Field(fail_fast=True)] | None = None
    video: None = None
    condition_videos: None = None


class FlowFactoryWire:
    """Implements Wire. Its client gives up after 60 s."""

    name = "flow-factory"
    timeout_ms = 55_000

    def __init__(self, rewards: Rewards) -> None:
        self._rewards = rewards

    def takes(self, content: Any) -> bool:
        """It has a route of its own."""
        return True

    def read(self, content: Any, incoming: IncomingRequest) -> ParsedRequest:
        """Every image is a candidate. Raises InvalidRequest, PayloadTooLarge."""
        try:
            document = _Document.model_validate(content)
        except ValidationError as error:
            raise invalid(error, own=0) from None
        images, sources = document.image or [], document.condition_images
        if sources is None:
            sources = [[] for _ in images]
        lengths = {"prompt": len(document.prompt), "image": len(images), "condition_images": len(sources)}
        if len(set(lengths.values())) > 1:
            raise InvalidRequest(f"lists of unequal length: {', '.join(f'{n} has {k}' for n, k in lengths.items())}")
        check_count(len(images), incoming.max_candidates)
        for number, texts in enumerate(sources):
            check_sources(f"condition_images[{number}]", len(texts), incoming)
        candidates = [
            WireCandidate(
                f"prompt[{number}]",
                [read_base64(f"condition_images[{number}][{n}]", text) for n, text in enumerate(sources[number])],
                document.prompt[number],
                read_base64(f"image[{number}]", image),
            )
            for number, image in enumerate(images)
        ]
        timeout_ms = patience_ms(incoming.headers, self.timeout_ms)
        return ask(candidates, self._answer, timeout_ms=timeout_ms)

    def refuse(self, error: JRMError) -> Response:
        """An error in a 200: the only reply that its client shows and does not retry."""
        return JSONResponse({"error": f"{error.code}: {reason_of(error)}"})

    def _answer(self, outcomes: Sequence[Outcome], scored: ScoredRequest) -> Response:
        return JSONResponse({"rewards": [self._rewards.number(score, scored.model) for score in scores(outcomes)]})
