"""The data types of scoring: image, segment, sequence, candidate, score. Plain data; no torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """An image as the model will see it: RGB, resized to a multiple of the merge block.

    ``pixels`` is uint8 [H, W, 3]; ``tokens`` the number of language-model tokens it becomes; ``key`` a digest of pixels
    and size, so that equal images are one segment wherever they come from.
    """

    key: bytes
    pixels: npt.NDArray[np.uint8]
    tokens: int


@dataclass(frozen=True, slots=True)
class Text:
    """A run of text token ids. Segments meet only at special tokens, so tokenizing them apart is exact."""

    ids: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Length in tokens."""
        return len(self.ids)


Segment = Text | Image


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """One pass over one candidate. The reward token is the last id of the last segment.

    ``tail`` is what the chat template adds after it. Attention is causal, so the tail cannot change the score: the
    reference scorer computes it as published code does, a faster scorer need not.
    """

    segments: tuple[Segment, ...]
    tail: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Length in tokens, tail included."""
        return sum(segment.tokens for segment in self.segments) + len(self.tail)


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """One edit, preprocessed and tokenized: all that a backend needs to score it.

    ``sources`` are in the order in which the caller gave them; a text-to-image checkpoint takes none.
    """

    sources: tuple[Image, ...]
    edited: Image
    instruction: str
    sequences: tuple[TokenSequence, ...]

    @property
    def images(self) -> tuple[Image, ...]:
        """The sources, then the edited image."""
        return (*self.sources, self.edited)

    @property
    def source_keys(self) -> tuple[bytes, ...]:
        """The keys of the sources, equal for candidates with the same sources."""
        return tuple(source.key for source in self.sources)

    @property
    def tokens(self) -> int:
        """Language-model tokens of all passes, nothing shared."""
        return sum(sequence.tokens for sequence in self.sequences)


@dataclass(frozen=True, slots=True)
class Dimension:
    """One named output: r ~ N(mean, std²). ``std`` is None for a mean-only head."""

    mean: float
    std: float | None


@dataclass(frozen=True, slots=True)
class Score:
    """A finished candidate."""

    reward: float
    reward_std: float | None
    dimensions: Mapping[str, Dimension]

    @property
    def finite(self) -> bool:
        """Whether every number is finite; a score that is not must become an error."""
        values = [self.reward, self.reward_std]
        values += [number for d in self.dimensions.values() for number in (d.mean, d.std)]
        return all(value is None or math.isfinite(value) for value in values)


@dataclass(frozen=True, slots=True)
class Scale:
    """A manifest's ``reward.normalize``: where rewards lie, and how far they are apart. ``scale`` is above 0."""

    center: float
    scale: float

    def normalized(self, reward: float) -> float:
        """sigmoid((reward - center) / scale): from 0 to 1, and 0.5 at the center."""
        steps = (reward - self.center) / self.scale
        if steps >= 0:
            return 1.0 / (1.0 + math.exp(-steps))
        weight = math.exp(steps)  # a positive number could overflow
        return weight / (1.0 + weight)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The model that is served, for replies and ``/v1/info``."""

    name: str
    fingerprint: str
    description: Mapping[str, Any]

    @property
    def precision(self) -> str:
        """What the scores are computed in: float32, bfloat16, float16 or fp8; empty if this process does not score."""
        return str(self.description.get("precision", ""))

    @property
    def scale(self) -> Scale | None:
        """How the checkpoint normalizes its rewards; None if it does not."""
        normalize = self.description.get("reward", {}).get("normalize")
        return None if normalize is None else Scale(**normalize)


def joined_kernels(of_devices: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The kernels of each part of a backbone; if devices differ, all of them, separated by commas."""
    return {part: ",".join(dict.fromkeys(kernels[part] for kernels in of_devices)) for part in of_devices[0]}


def combine(
    dimensions: Mapping[str, Dimension], weights: Mapping[str, float], pooling: Literal["mean", "min"]
) -> tuple[float, float | None]:
    """Pool named dimensions into (reward, reward_std).

    ``mean``: sum(w·mean) / sum(w), with std sqrt(sum((w·std)²)) / sum(w) for independent Gaussians.
    ``min``: mean and std of the lowest dimension. The std is None when a dimension it needs has none.
    A NaN mean makes the reward NaN under either rule: it must surface, not be skipped by a comparison.
    """
    chosen = [dimensions[name] for name in weights]
    if pooling == "min":
        broken = [d for d in chosen if math.isnan(d.mean)]
        lowest = broken[0] if broken else min(chosen, key=lambda d: d.mean)
        return lowest.mean, lowest.std
    total = sum(weights.values())
    reward = sum(weight * d.mean for weight, d in zip(weights.values(), chosen, strict=True)) / total
    if any(d.std is None for d in chosen):
        return reward, None
    # hypot, not a sum of squares: a std of 1e200 is finite, its square is an OverflowError.
    return reward, math.hypot(*(w * (d.std or 0.0) for w, d in zip(weights.values(), chosen, strict=True))) / total
