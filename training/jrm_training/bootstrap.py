"""Confidence intervals by resampling groups. Pure numpy.

The pairs of a group share its edits, so they are not independent, and an interval that counts pairs as if they were is
too narrow. Groups are independent: they are what is drawn again, with replacement. Every figure here is a function of
sums over groups, so a resample is a count for each group and one matrix product.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

DRAWS = 1000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its confidence interval [``low``, ``high``].

    ``count`` is the number of units that it is taken over (pairs, tuples, regions, groups: the figure says which) and
    ``groups`` the number of groups that they come from. ``value`` is None without a unit; ``low`` and ``high`` are
    None where too few groups take part to say anything. ``chance`` is what random scores get, where that is defined.
    """

    value: float | None
    low: float | None
    high: float | None
    count: int
    groups: int
    chance: float | None = None


class Tally(Protocol):
    """One figure that is a function of sums over groups."""

    @property
    def sums(self) -> Array:
        """Additive statistics, float64 [groups, K]; their totals give the figure."""
        ...

    def estimate(self, resamples: Array, level: float) -> Estimate:
        """The figure, with its interval from resampled totals, float64 [draws, K]."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """Right units over all units: ``sums`` is [groups, 2], (right, all).

    The interval takes the quantiles of the resampled figure. A share of exactly 0 or 1 never varies when groups are
    drawn again, which is no certainty: there it is Wilson's interval for as many trials as groups take part.
    """

    sums: Array
    chance: float | None = None

    def estimate(self, resamples: Array, level: float) -> Estimate:
        """Implements ``Tally``."""
        right, units = (float(total) for total in self.sums.sum(axis=0))
        groups = int((self.sums[:, 1] > 0).sum())
        if groups == 0:
            return Estimate(None, None, None, 0, 0)
        value = right / units
        low: float | None = None
        high: float | None = None
        if right in (0.0, units):
            z = NormalDist().inv_cdf((1 + level) / 2)
            margin = z * z / (groups + z * z)
            low, high = (0.0, margin) if right == 0 else (1.0 - margin, 1.0)
        elif groups > 1:
            low, high = _quantiles(_ratio(resamples[:, 0], resamples[:, 1]), level)
        return Estimate(value, low, high, round(units), groups, self.chance)


@dataclass(frozen=True, slots=True, eq=False)
class MacroShare:
    """The plain average of several shares, whatever their numbers of units: ``sums`` is [groups, 2·shares].

    They are (right, all) of the first share, then of the next. Shares without a unit take no part. The interval takes
    the quantiles of the resampled average; where every share is exactly 0 or 1 there is none.
    """

    sums: Array

    def estimate(self, resamples: Array, level: float) -> Estimate:
        """Implements ``Tally``."""
        units = self.sums[:, 1::2]
        groups = int((units.sum(axis=1) > 0).sum())
        if groups == 0:
            return Estimate(None, None, None, 0, 0)
        shares = _ratio(*self._totals(self.sums.sum(axis=0)))
        value = float(np.nanmean(shares))
        low: float | None = None
        high: float | None = None
        if groups > 1 and not np.isin(shares[~np.isnan(shares)], (0.0, 1.0)).all():
            drawn = _ratio(*self._totals(resamples))
            present = ~np.isnan(drawn)
            averages = _ratio(np.where(present, drawn, 0.0).sum(axis=-1), present.sum(axis=-1).astype(np.float64))
            low, high = _quantiles(averages, level)
        return Estimate(value, low, high, round(float(units.sum())), groups)

    @staticmethod
    def _totals(sums: Array) -> tuple[Array, Array]:
        return sums[..., 0::2], sums[..., 1::2]


@dataclass(frozen=True, slots=True, eq=False)
class Mean:
    """The average of an amount over units: ``sums`` is [groups, 2], (total, units). The interval takes quantiles."""

    sums: Array

    @classmethod
    def of(cls, amounts: Array, group: npt.NDArray[np.int64], groups: int) -> Mean:
        """``amounts`` [units], each of the group with this number."""
        return cls(np.stack([np.bincount(group, amounts, groups), np.bincount(group, minlength=groups)], axis=1))

    def estimate(self, resamples: Array, level: float) -> Estimate:
        """Implements ``Tally``."""
        total, units = (float(one) for one in self.sums.sum(axis=0))
        groups = int((self.sums[:, 1] > 0).sum())
        if groups == 0:
            return Estimate(None, None, None, 0, 0)
        low, high = _quantiles(_ratio(resamples[:, 0], resamples[:, 1]), level) if groups > 1 else (None, None)
        return Estimate(total / units, low, high, round(units), groups)


@dataclass(frozen=True, slots=True, eq=False)
class RankCorrelation:
    """Spearman's correlation: ``sums`` is [groups, 6], of 1, x, y, x², y² and x·y over the ranks of a group's units.

    Ranks are those among all units, and stay what they are when groups are drawn again. Where all x or all y are equal
    there is no value.
    """

    sums: Array

    @classmethod
    def of(cls, x: Array, y: Array, group: npt.NDArray[np.int64], groups: int) -> RankCorrelation:
        """``x`` and ``y`` [units] are ranks, each pair of the group with this number."""
        x, y = x - x.mean(), y - y.mean()  # products of ranks would lose digits
        parts = (np.ones_like(x), x, y, x * x, y * y, x * y)
        return cls(np.stack([np.bincount(group, part, groups) for part in parts], axis=1))

    def estimate(self, resamples: Array, level: float) -> Estimate:
        """Implements ``Tally``."""
        count = int((self.sums[:, 0] > 0).sum())
        value = float(self._correlation(self.sums.sum(axis=0)))
        if np.isnan(value):
            return Estimate(None, None, None, 0, 0)
        low, high = _quantiles(self._correlation(resamples), level) if count > 1 else (None, None)
        return Estimate(value, low, high, round(float(self.sums[:, 0].sum())), count)

    @staticmethod
    def _correlation(sums: Array) -> Array:
        n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
        x_variance, y_variance = n * xx - x * x, n * yy - y * y
        varies = (x_variance > 0) & (y_variance > 0)
        return _ratio(np.where(varies, n * xy - x * y, np.nan), np.sqrt(np.where(varies, x_variance * y_variance, 1)))


def ranks(values: Array) -> Array:
    """Ranks from 1, float64 [units]; equal values share the mean of theirs."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    mean_ranks: Array = np.cumsum(count) - (count - 1) / 2
    return mean_ranks[place]


@dataclass(frozen=True, slots=True, eq=False)
class CalibrationError:
    """Expected calibration error: sum over bins of |observed - predicted|, over all predictions.

    ``sums`` is [groups, 3·bins]: for every bin the number of predictions, then the sum of predicted probabilities of
    every bin, then the number of events of every bin. Each pair is predicted from both sides, so it counts twice.

    Noise only ever adds to this error, and resampling adds noise once more: the interval is the basic bootstrap's,
    which turns the resampled deviations around, and is cut at 0.
    """

    sums: Array

    def estimate(self, resamples: Array, level: float) -> Estimate:
        """Implements ``Tally``."""
        bins = self.sums.shape[1] // 3
        of_group = self.sums[:, :bins].sum(axis=1)
        groups = int((of_group > 0).sum())
        if groups == 0:
            return Estimate(None, None, None, 0, 0)
        value = float(self._error(self.sums.sum(axis=0)))
        low: float | None = None
        high: float | None = None
        if groups > 1:
            lowest, highest = _quantiles(self._error(resamples), level)
            low, high = max(0.0, 2 * value - highest), min(1.0, max(0.0, 2 * value - lowest))
        return Estimate(value, low, high, round(of_group.sum() / 2), groups)

    @staticmethod
    def _error(sums: Array) -> Array:
        count, predicted, observed = np.split(sums, 3, axis=-1)
        return _ratio(np.abs(observed - predicted).sum(axis=-1), count.sum(axis=-1))


def estimates(
    tallies: Mapping[str, Tally], *, draws: int = DRAWS, seed: int = 0, level: float = LEVEL
) -> dict[str, Estimate]:
    """Every figure with its interval, deterministic by ``seed``; all from the same resamples of the groups.

    All tallies must be of the same groups.
    """
    if not tallies:
        return {}
    sums = [tally.sums for tally in tallies.values()]
    resamples = resample(np.concatenate(sums, axis=1), draws, seed)
    parts = np.split(resamples, np.cumsum([part.shape[1] for part in sums])[:-1], axis=1)
    return {name: tally.estimate(part, level) for (name, tally), part in zip(tallies.items(), parts, strict=True)}


def resample(sums: Array, draws: int, seed: int) -> Array:
    """Totals of ``draws`` resamples of the groups, float64 [draws, K], from ``sums`` [groups, K]."""
    groups = len(sums)
    random = np.random.default_rng(seed)
    totals = np.zeros((draws, sums.shape[1]))
    for draw in range(draws if groups else 0):
        totals[draw] = np.bincount(random.integers(groups, size=groups), minlength=groups) @ sums
    return totals


def _quantiles(values: Array, level: float) -> tuple[float, float]:
    """The central interval of the resamples in which there was a unit at all."""
    low, high = np.quantile(values[~np.isnan(values)], [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _ratio(above: Array, below: Array) -> Array:
    """``above`` / ``below``, NaN where there is nothing to divide by."""
    ratio: Array = np.divide(above, below, out=np.full(np.shape(below), np.nan), where=below > 0)
    return ratio
