"""deepgen_rl, and UniRL-Zero (G-U-N/UniRL): ``POST /`` with a pickle, one list of sources and one of edits.

Their clients never retry, and turn any status but 200 into an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.responses import Response

from jrm_service.api.guards import patience_ms
from jrm_service.api.parse import check_count
from jrm_service.api.score_path import IncomingRequest, ParsedRequest, ScoredRequest
from jrm_service.errors import JRMError
from jrm_service.images.reader import ImageInput

from . import pickle_wire
from .candidates import Outcome, WireCandidate, ask, scores
from .rewards import Rewards

_EDITS = {"edited": bytes, "prompts": str}


class DeepgenWire:
    """Implements Wire. Its clients give up after 600 s."""

    name = "deepgen"
    timeout_ms = 590_000

    def __init__(self, rewards: Rewards) -> None:
        self._rewards = rewards

    def takes(self, content: Any) -> bool:
        """It shares its route with EditScore."""
        return isinstance(content, dict) and isinstance(content.get("images"), dict) and "prompts" in content

    def read(self, content: Any, incoming: IncomingRequest) -> ParsedRequest:
        """Every edited image is a candidate. Raises InvalidRequest, PayloadTooLarge."""
        edits, prompts = pickle_wire.columns(content["images"] | {"prompts": content["prompts"]}, _EDITS)
        read = pickle_wire.ImageInputs()
        check_count(len(edits), incoming.max_candidates)
        sources: list[list[ImageInput]] = [[] for _ in edits]
        if content["images"].get("source"):
            (images,) = pickle_wire.columns(content["images"], {"source": bytes})
            pickle_wire.require_equal_lengths({"edited": edits, "source": images})
            sources = [[read.of(f"source[{n}]", data)] for n, data in enumerate(images)]
        candidates = [
            WireCandidate(f"edited[{n}]", sources[n], prompts[n], read.of(f"edited[{n}]", data))
            for n, data in enumerate(edits)
        ]
        timeout_ms = patience_ms(incoming.headers, self.timeout_ms)
        return ask(candidates, self._answer, timeout_ms=timeout_ms)

    def refuse(self, error: JRMError) -> Response:
        """A pickle with the reason, as its own server sends."""
        return pickle_wire.refusal(error)

    def _answer(self, outcomes: Sequence[Outcome], scored: ScoredRequest) -> Response:
        return pickle_wire.reply({"scores": [self._rewards.number(score, scored.model) for score in scores(outcomes)]})
