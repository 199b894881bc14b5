"""A scored group as readers of /v1/watch see it: its event, with its best and its worst edit. Pure."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jrm_service.errors import CandidateError, InternalError
from jrm_service.images.reader import ImageInput
from jrm_service.scoring.service import GroupInput
from jrm_service.scoring.types import Score, ServedModel

from .window import Numbers

_MOST_CHARACTERS = 2000  # of an instruction
_GROUP_BYTES, _IMAGE_BYTES, _OUTCOME_BYTES, _DIMENSION_BYTES = 1000, 300, 200, 250  # of the objects that hold them


@dataclass(frozen=True, slots=True)
class ScoredGroup:
    """A group that has just been answered, reduced to what readers are shown.

    ``time`` is in seconds since 1970. ``outcomes`` are scores, and codes of errors: an exception may hold on to images.
    ``best`` and ``worst`` are indices of edits: the highest reward and the lowest, or None where there is no such edit,
    or only one. ``images`` are the sources (``sources`` of them), then the best and the worst edit.
    """

    time: float
    request_id: str
    key: str | None
    wire: str
    model: ServedModel
    instruction: str
    instruction_cut: bool
    outcomes: Sequence[Score | str]
    sources: int
    best: int | None
    worst: int | None
    images: Sequence[ImageInput]

    @classmethod
    def of(
        cls,
        group: GroupInput,
        outcomes: Sequence[Score | CandidateError],
        *,
        time: float,
        request_id: str,
        key: str | None,
        wire: str,
        model: ServedModel,
    ) -> ScoredGroup:
        """Return the part of a group that readers are shown."""
        ranked = [(outcome.reward, -n) for n, outcome in enumerate(outcomes) if isinstance(outcome, Score)]
        # Among equal rewards the first is the best and the last the worst: two edits even if all are equal.
        best = -max(ranked)[1] if ranked else None
        worst = -min(ranked)[1] if len(ranked) > 1 else None
        shown = [group.edits[index] for index in (best, worst) if index is not None]
        return cls(
            time=time,
            request_id=request_id,
            key=key,
            wire=wire,
            model=model,
            instruction=group.instruction[:_MOST_CHARACTERS],
            instruction_cut=len(group.instruction) > _MOST_CHARACTERS,
            outcomes=[outcome if isinstance(outcome, Score) else outcome.code for outcome in outcomes],
            sources=len(group.sources),
            best=best,
            worst=worst,
            images=[*group.sources, *shown],
        )

    def without_images(self) -> ScoredGroup:
        """The same group, with no images to show."""
        return replace(self, images=[replace(image, data=InternalError("not kept")) for image in self.images])

    @property
    def bytes(self) -> int:
        """Its size in memory, or a little more: mostly its images, as they were sent."""
        images = sum(_IMAGE_BYTES + (len(image.data) if isinstance(image.data, bytes) else 0) for image in self.images)
        dimensions = next((len(outcome.dimensions) for outcome in self.outcomes if isinstance(outcome, Score)), 0)
        outcomes = len(self.outcomes) * (_OUTCOME_BYTES + dimensions * _DIMENSION_BYTES)
        return _GROUP_BYTES + 4 * len(self.instruction) + images + outcomes

    def numbers(self) -> Numbers:
        """Its rewards, for ``Window.add``."""
        scores = [outcome for outcome in self.outcomes if isinstance(outcome, Score)]
        names = list(scores[0].dimensions) if scores else []
        return Numbers(
            self.model.fingerprint,
            np.array([score.reward for score in scores], dtype=np.float64),
            {name: np.array([score.dimensions[name].mean for score in scores], dtype=np.float64) for name in names},
            errors=len(self.outcomes) - len(scores),
        )

    def event(self, kept: Collection[str]) -> str:
        """The data of its event: JSON in ASCII, on one line. ``kept`` are the ids of the pictures that are kept."""

        def id_of(image: ImageInput) -> str | None:
            return image.key.hex() if image.key.hex() in kept else None

        sources, edits = self.images[: self.sources], iter(self.images[self.sources :])
        document: dict[str, Any] = {
            "time": round(self.time, 3),
            "request_id": self.request_id,
            "key": self.key,
            "wire": self.wire or None,
            "model": self.model.name,
            "fingerprint": self.model.fingerprint,
            "instruction": self.instruction,
            "instruction_cut": self.instruction_cut,
            "scores": [_outcome_json(index, outcome) for index, outcome in enumerate(self.outcomes)],
            "best": self.best,
            "worst": self.worst,
            "pictures": {
                "sources": [id_of(source) for source in sources],
                "best": None if self.best is None else id_of(next(edits)),
                "worst": None if self.worst is None else id_of(next(edits)),
            },
        }
        return json.dumps(document, separators=(",", ":"))


def _outcome_json(index: int, outcome: Score | str) -> dict[str, Any]:
    """As in the reply of ``/v1/score``; an error has only its code, because messages quote what callers sent."""
    if isinstance(outcome, str):
        return {"index": index, "status": "error", "error": {"code": outcome}}
    return {
        "index": index,
        "status": "ok",
        "reward": outcome.reward,
        "reward_std": outcome.reward_std,
        "dimensions": {name: {"mean": d.mean, "std": d.std} for name, d in outcome.dimensions.items()},
    }
