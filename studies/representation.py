"""Section 4.3 for several runs: the hidden states **h** of the same edits, how they spread, and how they look."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from jrm_service.model.checkpoint import Checkpoint
from jrm_training.batch import Collator
from jrm_training.data import Group
from jrm_training.model import JointModel

from .analysis import Array, principal_components, procrustes, spectrum

POINTS = 200
WHOLE = "all passes"


def hidden_states(
    checkpoint: Checkpoint,
    groups: Sequence[Group],
    *,
    device: str = "cpu",
    advance: Callable[[int, int], None] = lambda _done, _total: None,
) -> dict[str, Array]:
    """**h** (Eq. 1) of every edit of ``groups``, float64 [N, H] for each pass, computed in float32.

    A pass is named by the dimensions that are read from it. Where there are several, ``WHOLE`` has them side by side,
    float64 [N, passes·H]: all that the heads see of an edit. ``advance(done, total)`` counts groups. Raises
    CheckpointError, and ValueError for a group that the model cannot take.
    """
    model = JointModel.load(checkpoint, device).eval()
    collator = Collator(checkpoint, critiques=False)
    found = []
    advance(0, len(groups))
    with torch.inference_mode():
        for number, group in enumerate(groups, start=1):
            found.append(model(collator.row([group])).h.double().cpu().numpy())
            advance(number, len(groups))
    h = np.concatenate(found)
    names = [" + ".join(one.read) for one in checkpoint.manifest.passes]
    states: dict[str, Array] = {name: h[:, number] for number, name in enumerate(names)}
    return states if len(names) == 1 else {**states, WHOLE: h.reshape(len(h), -1)}


def represent(runs: Sequence[Mapping[str, Array]], *, points: int = POINTS) -> list[dict[str, Any]]:
    """The analysis of every run's ``hidden_states``, which must be of the same edits in the same order.

    For each pass: ``states`` N and ``width`` H, the fields of ``Spectrum``, and ``points``, the first three principal
    components of at most that many edits, evenly spread. They are turned onto those of the first run by Procrustes,
    with all edits. Raises ValueError where the shapes of two runs differ, and as ``spectrum`` does.
    """
    found: list[dict[str, Any]] = [{} for _ in runs]
    for name, first in runs[0].items():
        onto = principal_components(first)
        shown = np.linspace(0, len(first) - 1, min(points, len(first))).round().astype(np.int64)
        for result, states in zip(found, (run[name] for run in runs), strict=True):
            if states.shape != first.shape:
                raise ValueError(f"{name}: hidden states {list(states.shape)} and {list(first.shape)} do not compare")
            spread = spectrum(states)
            result[name] = {
                "states": states.shape[0],
                "width": states.shape[1],
                "effective_rank": spread.effective_rank,
                "spectral_entropy": spread.spectral_entropy,
                "isotropy": spread.isotropy,
                "singular_values": spread.singular_values.tolist(),
                "points": procrustes(principal_components(states), onto)[shown].tolist(),
            }
    return found
