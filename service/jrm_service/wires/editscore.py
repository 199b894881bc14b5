"""EditScore (OmniGen2-RL): ``POST /`` with a pickle of PIL images, one list of sources for each edit.

Its client tries once; any status but 200 ends the run. All lists of the reply are as long as ``output_image``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.responses import Response

from jrm_client import strict_json
from jrm_service.api.guards import patience_ms
from jrm_service.api.parse import check_count
from jrm_service.api.score_path import IncomingRequest, ParsedRequest, ScoredRequest
from jrm_service.errors import InvalidRequest, JRMError

from . import pickle_wire
from .candidates import Outcome, WireCandidate, ask, check_sources, scores
from .pickle_allowlist import PILState, require_shallow
from .pil_images import Pictures
from .rewards import Rewards

_PASSES = 0.5  # its client counts an edit with at least this reward as a success
_MAX_META_KEYS = 256  # each candidate gets a copy of its meta, even if all are one document


class EditScoreWire:
    """Implements Wire. Its client gives up after 600 s."""

    name = "editscore"
    timeout_ms = 590_000

    def __init__(self, rewards: Rewards) -> None:
        self._rewards = rewards

    def takes(self, content: Any) -> bool:
        """It shares its route with deepgen_rl."""
        return isinstance(content, dict) and "output_image" in content and "meta_datas" in content

    def read(self, content: Any, incoming: IncomingRequest) -> ParsedRequest:
        """Every output image is a candidate. Raises InvalidRequest, PayloadTooLarge."""
        edits, documents = pickle_wire.columns(content, {"output_image": PILState, "meta_datas": str})
        check_count(len(edits), incoming.max_candidates)
        (inputs,) = pickle_wire.columns(content, {"input_images": list})
        pickle_wire.require_equal_lengths({"output_image": edits, "input_images": inputs})
        for number, pictures in enumerate(inputs):
            check_sources(f"input_images[{number}]", len(pictures), incoming)
        metas = _metas(documents)

        images = pickle_wire.ImageInputs(Pictures(max_pixels=incoming.max_image_pixels).image_input)
        candidates = [
            WireCandidate(
                f"output_image[{number}]",
                [images.of(f"input_images[{number}][{n}]", picture) for n, picture in enumerate(inputs[number])],
                metas[number]["instruction"],
                images.of(f"output_image[{number}]", edit),
            )
            for number, edit in enumerate(edits)
        ]

        def answer(outcomes: Sequence[Outcome], scored: ScoredRequest) -> Response:
            rewards = [self._rewards.number(score, scored.model) for score in scores(outcomes)]
            return pickle_wire.reply(
                {
                    "scores": [1.0 if reward >= _PASSES else 0.0 for reward in rewards],
                    "rewards": rewards,
                    "reasoning": [""] * len(rewards),
                    "strict_rewards": rewards,
                    "meta_data": [meta | {"original_index": number} for number, meta in enumerate(metas)],
                }
            )

        timeout_ms = patience_ms(incoming.headers, self.timeout_ms)
        return ask(candidates, answer, timeout_ms=timeout_ms)

    def refuse(self, error: JRMError) -> Response:
        """Any status but 200."""
        return pickle_wire.refusal(error)


def _metas(documents: Sequence[str]) -> list[dict[str, Any]]:
    """Parse the documents; one that occurs in many places is parsed once."""
    by_id: dict[int, dict[str, Any]] = {}
    for number, document in enumerate(documents):
        if id(document) not in by_id:
            by_id[id(document)] = _meta(number, document)
    return [by_id[id(document)] for document in documents]


def _meta(number: int, document: str) -> dict[str, Any]:
    name = f"meta_datas[{number}]"
    try:
        meta = strict_json.loads(document)
        require_shallow(meta)  # it is sent back
    except ValueError as error:
        raise InvalidRequest(f"{name}: {error}", param=name) from None
    if not isinstance(meta, dict) or not isinstance(meta.get("instruction"), str):
        raise InvalidRequest(f"{name}: must be a JSON object with an instruction", param=name)
    if len(meta) > _MAX_META_KEYS:
        raise InvalidRequest(f"{name}: {len(meta)} keys, the limit is {_MAX_META_KEYS}", param=name)
    return meta
