"""Edit-R1 and UniWorld-V2, and FIRM-Reward: ``POST /mode/{mode}`` with a pickle.

``logits_non_cot`` is the reward, FIRM's ``score_execution`` the dimension ``instruction_following``. A JRM checkpoint
has nothing like its ``score_consistency``, which is refused. Their clients unpickle whatever comes back, and stop at a
reply without scores; they retry a 500 up to a thousand times, and a 429 or 503 after its ``retry-after``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from starlette.responses import Response

from jrm_service.api.guards import patience_ms
from jrm_service.api.parse import check_count
from jrm_service.api.score_path import IncomingRequest, ParsedRequest, ScoredRequest
from jrm_service.errors import InvalidRequest, JRMError
from jrm_service.images.reader import ImageInput
from jrm_service.scoring.types import Score, ServedModel

from . import pickle_wire
from .candidates import Outcome, WireCandidate, ask, scores
from .rewards import Rewards

_EXECUTION = "instruction_following"


class EditR1Wire:
    """Implements Wire. Its clients give up after 360 s."""

    name = "edit-r1"
    timeout_ms = 350_000

    def __init__(self, rewards: Rewards) -> None:
        self._rewards = rewards

    def takes(self, content: Any) -> bool:
        """It has a route of its own."""
        return True

    def read(self, content: Any, incoming: IncomingRequest) -> ParsedRequest:
        """Every image is a candidate. Raises InvalidRequest, PayloadTooLarge."""
        number = self._number(incoming.path["mode"], incoming.model)
        if not isinstance(content, dict):
            raise InvalidRequest("the pickle must be a dict")
        images, prompts = pickle_wire.columns(content, {"images": bytes, "prompts": str})
        read = pickle_wire.ImageInputs()
        check_count(len(images), incoming.max_candidates)
        if content.get("metadatas") is not None:
            (metadatas,) = pickle_wire.columns(content, {"metadatas": object})
            pickle_wire.require_equal_lengths({"images": images, "metadatas": metadatas})
        if not content.get("ref_images"):
            sources: list[list[ImageInput]] = [[] for _ in images]
        else:
            (references,) = pickle_wire.columns(content, {"ref_images": bytes})
            pickle_wire.require_equal_lengths({"images": images, "ref_images": references})
            sources = [[read.of(f"ref_images[{n}]", data)] for n, data in enumerate(references)]
        candidates = [
            WireCandidate(f"images[{n}]", sources[n], prompts[n], read.of(f"images[{n}]", data))
            for n, data in enumerate(images)
        ]

        def answer(outcomes: Sequence[Outcome], scored: ScoredRequest) -> Response:
            return pickle_wire.reply({"scores": [number(score, scored.model) for score in scores(outcomes)]})

        timeout_ms = patience_ms(incoming.headers, self.timeout_ms)
        return ask(candidates, answer, timeout_ms=timeout_ms)

    def refuse(self, error: JRMError) -> Response:
        """A pickle without scores, and never a 500."""
        return pickle_wire.refusal(error)

    def _number(self, mode: str, model: ServedModel) -> Callable[[Score, ServedModel], float]:
        """Return the function that computes a mode's number. Raises InvalidRequest for an unknown mode."""
        if mode == "logits_non_cot":
            return self._rewards.number
        if mode != "score_execution":
            raise InvalidRequest(f"unknown mode: {mode[:64]}; there are logits_non_cot and score_execution")
        if self._rewards.normalized:
            raise InvalidRequest("score_execution is a dimension, and only the reward can be normalized")
        if _EXECUTION not in model.description.get("dimensions", [_EXECUTION]):
            raise InvalidRequest(f"score_execution: the checkpoint '{model.name}' has no dimension {_EXECUTION}")
        return lambda score, _model: score.dimensions[_EXECUTION].mean
