"""How much better one run is than another on the same groups."""

from __future__ import annotations

import numpy as np

from jrm_training.bootstrap import DRAWS, LEVEL, Estimate, Share, resample


def gain(ours: Share, theirs: Share, *, draws: int = DRAWS, seed: int = 0, level: float = LEVEL) -> Estimate:
    """``ours`` - ``theirs``, two shares over the same groups, with a paired interval.

    Each resample draws the same groups for both, so that hard and easy groups cancel out: the interval is narrower than
    those of the two shares suggest. ``count`` and ``groups`` are those of ``ours``. ``value`` is None where one has no
    units, the interval where the resamples show no variation. Deterministic by ``seed``.
    """
    sums = np.concatenate([ours.sums, theirs.sums], axis=1)
    right, units, other_right, other_units = (float(total) for total in sums.sum(axis=0))
    groups = int((ours.sums[:, 1] > 0).sum())
    if not units or not other_units:
        return Estimate(None, None, None, 0, 0)
    totals = resample(sums, draws, seed)
    totals = totals[(totals[:, 1] > 0) & (totals[:, 3] > 0)]
    gains = totals[:, 0] / totals[:, 1] - totals[:, 2] / totals[:, 3]
    low, high = (float(bound) for bound in np.quantile(gains, [(1 - level) / 2, (1 + level) / 2]))
    value = right / units - other_right / other_units
    if low == high:
        return Estimate(value, None, None, round(units), groups)
    return Estimate(value, low, high, round(units), groups)
