"""The number that a wire sends as the reward, and the names of the reward in requests."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from jrm_service.scoring.types import Score, ServedModel

OWN_NAME = "jrm"


@dataclass(frozen=True, slots=True)
class Rewards:
    """How one wire reports rewards.

    ``normalized``: as sigmoid((reward - center) / scale) of the manifest's ``reward.normalize``, instead of raw.
    ``further_names`` are accepted in addition to ``jrm`` and the checkpoint's own name.
    """

    normalized: bool = False
    further_names: Collection[str] = ()

    def names(self, model: ServedModel) -> list[str]:
        """Every name that a request may use for the reward."""
        return accepted_names(model, self.further_names)

    def number(self, score: Score, model: ServedModel) -> float:
        """The reward as this wire sends it."""
        if not self.normalized:
            return score.reward
        assert model.scale is not None  # check_scales refuses to start otherwise
        return model.scale.normalized(score.reward)


def accepted_names(model: ServedModel, further: Collection[str]) -> list[str]:
    """``jrm``, the checkpoint's own name, and those of the setting ``reward_names``, each once."""
    return list(dict.fromkeys([OWN_NAME, model.name, *further]))
