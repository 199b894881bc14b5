"""Statistics in bounded memory: count, mean and standard deviation, and quantiles of a random sample. Pure."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_SUMMARY = np.array(QUANTILES)
_DIGITS = 6
_DECILES = np.arange(1, 10) / 10
_ENOUGH = 20  # with fewer values, shares of bins say nothing


class Sample:
    """A stream of numbers.

    Count, mean and standard deviation are of all of them; ``kept`` is a uniform random sample of at most ``size``.
    """

    def __init__(self, size: int, random: np.random.Generator) -> None:
        self.count = 0
        self.mean = 0.0
        self._squares = 0.0  # of the distances from the mean
        self._random = random
        self._buffer: Values = np.empty(0)
        self._size = size

    @property
    def kept(self) -> Values:
        """The sample."""
        return self._buffer[: min(self.count, self._size)]

    @property
    def std(self) -> float:
        """The population standard deviation of all numbers; 0 for none."""
        return math.sqrt(self._squares / self.count) if self.count else 0.0

    def add(self, values: Values) -> None:
        """Add numbers, float64 [N], all finite."""
        if not len(values):
            return
        seen = self.count
        mean = float(values.mean())
        self._add_moments(len(values), mean, float(((values - mean) ** 2).sum()))
        self._reserve(self.count)
        room = min(len(values), max(0, self._size - seen))
        self._buffer[seen : seen + room] = values[:room]
        later = values[room:]  # each replaces a random one with the probability that all earlier ones had
        places = self._random.integers(0, np.arange(seen + room, self.count) + 1) if len(later) else np.empty(0, int)
        taken = places < self._size
        self._buffer[places[taken]] = later[taken]

    def merge(self, other: Sample) -> None:
        """Add the numbers of another sample."""
        if not other.count:
            return
        mine, theirs = self.kept.copy(), other.kept
        if self.count + other.count > self._size:
            total = min(self._size, len(mine) + len(theirs))
            chosen = int(self._random.hypergeometric(self.count, other.count, total)) if self.count else 0
            chosen = min(max(chosen, total - len(theirs)), len(mine))
            mine = self._random.choice(mine, chosen, replace=False)
            theirs = self._random.choice(theirs, total - chosen, replace=False)
        self._add_moments(other.count, other.mean, other._squares)
        self._reserve(self.count)
        self._buffer[: len(mine) + len(theirs)] = np.concatenate((mine, theirs))

    def document(self) -> dict[str, Any]:
        """Its summary for JSON: nulls if there are no numbers."""
        if not self.count:
            return {"count": 0, "mean": None, "std": None, "quantiles": None}
        quantiles = [rounded(value) for value in _quantiles(self.kept, _SUMMARY)]
        return {"count": self.count, "mean": rounded(self.mean), "std": rounded(self.std), "quantiles": quantiles}

    def _add_moments(self, count: int, mean: float, squares: float) -> None:
        """Chan, Golub and LeVeque's update of the moments of two sets."""
        total = self.count + count
        distance = mean - self.mean
        self._squares += squares + distance * distance * self.count * count / total
        self.mean += distance * count / total
        self.count = total

    def _reserve(self, count: int) -> None:
        wanted = min(count, self._size)
        if wanted > len(self._buffer):
            grown = np.empty(min(self._size, max(64, 2 * wanted)))
            grown[: len(self._buffer)] = self._buffer
            self._buffer = grown


def shift(reference: Sample, now: Sample) -> float | None:
    """How far the mean has moved, in standard deviations of the reference; None if that is undefined."""
    if not now.count or reference.count < 2 or reference.std == 0.0:
        return None
    return rounded((now.mean - reference.mean) / reference.std)


def stability_index(reference: Sample, now: Sample) -> float | None:
    """The population stability index over deciles of the reference: 0 for equal distributions, over 0.25 a clear drift.

    None if there are fewer than 20 numbers on either side.
    """
    if min(reference.count, now.count) < _ENOUGH:
        return None
    edges = np.unique(_quantiles(reference.kept, _DECILES))

    def shares(values: Values) -> npt.NDArray[np.floating[Any]]:
        counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
        return (counts + 0.5) / (
            len(values) + 0.5 * (len(edges) + 1)
        )  # so that an empty bin does not make the index infinite

    before, after = shares(reference.kept), shares(now.kept)
    return rounded(float(((after - before) * np.log(after / before)).sum()))


def _quantiles(values: Values, at: Values) -> Values:
    """Like ``np.quantile``, which takes ten times as long for so few numbers."""
    ordered = np.sort(values)
    places = at * (len(ordered) - 1)
    below = places.astype(np.intp)
    above = np.minimum(below + 1, len(ordered) - 1)
    quantiles: Values = ordered[below] + (ordered[above] - ordered[below]) * (places - below)
    return quantiles


def rounded(value: float) -> float:
    """Round to enough digits for a chart."""
    return float(f"{value:.{_DIGITS}g}")
