"""Fits ``reward.normalize`` to the scores of a checkpoint, and writes it into the manifest."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from jrm_client import jsonl
from jrm_service.errors import CheckpointError
from jrm_service.scoring.types import Scale

from .checkpoint import Checkpoint, open_checkpoint
from .checkpoint_files import write_json
from .golden import FILE as GOLDEN

MANIFEST = "reward/manifest.json"
FEWEST = 100
"""The fewest scores that a scale is fitted on: quartiles of fewer depend too much on the choice of edits."""


@dataclass(frozen=True, slots=True)
class Fit:
    """A scale, and quantiles of the rewards that it was fitted on: quantile -> (reward, normalized)."""

    scale: Scale
    scores: int
    quantiles: dict[float, tuple[float, float]]


def fit(rewards: Sequence[float]) -> Fit:
    """Center and scale such that the median becomes 0.5, and half of the rewards lie between 0.25 and 0.75.

    The center is the median, the scale (q75 - q25) / (2 ln 3): sigmoid(±ln 3) is 0.75 and 0.25. Quartiles, unlike a
    mean and a standard deviation, do not let a few hopelessly broken edits set the scale for all others. Raises
    ValueError for fewer than FEWEST rewards, and for rewards without a spread.
    """
    if len(rewards) < FEWEST:
        raise ValueError(f"{len(rewards)} scores, a scale is fitted on {FEWEST} at least")
    low, center, high = (float(value) for value in np.quantile(rewards, [0.25, 0.5, 0.75]))
    scale = Scale(_short(center), _short((high - low) / (2.0 * math.log(3.0))))
    if not scale.scale > 0:
        raise ValueError("half of the rewards are equal: there is no scale to be fitted")
    levels = (0.05, 0.25, 0.5, 0.75, 0.95)
    values = (float(value) for value in np.quantile(rewards, levels))
    quantiles = {level: (value, scale.normalized(value)) for level, value in zip(levels, values, strict=True)}
    return Fit(scale, len(rewards), quantiles)


def read_rewards(file: Path, checkpoint: Checkpoint) -> list[float]:
    """The rewards that ``jrm score --jsonl`` wrote for this checkpoint, with or without a scale in its manifest.

    Raises ValueError, with the line, for a row that it did not write or that is of another checkpoint; OSError.
    """
    rewards = []
    fingerprints = _fingerprints(checkpoint)
    with file.open("rb") as rows:
        for line in jsonl.lines(rows):
            try:
                row = jsonl.parse(line.text)
                if row.get("fingerprint") not in fingerprints:
                    raise ValueError(f"a score of {row.get('fingerprint')}, and not of {checkpoint.fingerprint}")
                rewards.append(_reward(row.get("reward")))
            except ValueError as error:
                raise ValueError(f"{file.name}:{line.number}: {error}") from None
    return rewards


def write_scale(checkpoint: Checkpoint, scale: Scale) -> Checkpoint:
    """Write ``reward.normalize`` into the manifest; returns the checkpoint with its new fingerprint.

    Golden scores hold raw rewards and stay valid; only the fingerprint in their file is updated. Raises
    CheckpointError.
    """
    manifest = json.loads((checkpoint.path / MANIFEST).read_text(encoding="utf-8-sig"))
    manifest.setdefault("reward", {})["normalize"] = {"center": scale.center, "scale": scale.scale}
    golden = checkpoint.path / GOLDEN
    recorded = json.loads(golden.read_text(encoding="utf-8-sig")) if golden.exists() else None
    followed = recorded is not None and recorded.get("fingerprint") in (
        checkpoint.fingerprint,
        checkpoint.pinned_fingerprint,
    )
    _replace(checkpoint.path / MANIFEST, manifest)
    written = open_checkpoint(checkpoint.path)
    if recorded is not None and followed:
        _replace(golden, recorded | {"fingerprint": written.fingerprint})
    return written


def _fingerprints(checkpoint: Checkpoint) -> set[str]:
    if checkpoint.manifest.reward.normalize is None:
        return {checkpoint.fingerprint}
    raw = checkpoint.manifest.reward.model_copy(update={"normalize": None})
    unscaled = replace(checkpoint, manifest=checkpoint.manifest.model_copy(update={"reward": raw}))
    return {checkpoint.fingerprint, unscaled.fingerprint}


def _reward(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError("no reward: not a row that `jrm score` wrote")
    return float(value)


def _short(value: float) -> float:
    """Round to six digits: more are noise, and people read manifests."""
    return float(f"{value:.6g}")


def _replace(file: Path, value: object) -> None:
    """Replace a file as a whole, or leave it as it was."""
    draft = file.with_name(f"{file.name}.new")
    try:
        write_json(draft, value)
        draft.replace(file)
    except OSError as error:
        raise CheckpointError([f"{file.name}: cannot be written ({error.strerror})"]) from None
    finally:
        draft.unlink(missing_ok=True)
