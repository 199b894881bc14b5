"""Eq. 4 of the paper: the probability that one edit is better than another, given Gaussian rewards."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from .arguments import number

_Array = npt.NDArray[np.floating]

# Both integrands below are analytic in a strip around the real axis, where the trapezoidal rule converges
# exponentially: with this step the error is below 1e-12 for every mean and std.
_STEP = 0.25
_NORMAL = np.arange(-40, 41) * _STEP  # ten standard deviations: the rest weighs 1e-23
_LOGISTIC = np.arange(-160, 161) * _STEP  # the logistic density at 40 is 4e-18


def sigmoid(x: _Array) -> _Array:
    """1 / (1 + exp(-x)) without overflow."""
    small = np.exp(-np.abs(x))
    result: _Array = np.where(x >= 0, 1.0, small) / (1.0 + small)
    return result


def expected_sigmoid(mean: float, std: float) -> float:
    """E[sigmoid(D)] for D ~ N(mean, std²), to an absolute error of 1e-9; deterministic; NaN in, NaN out.

    A small std is integrated over the Gaussian. A large one would squeeze the sigmoid between two nodes, so there the
    integral is taken over the sigmoid's own density: for L logistic, E[sigmoid(D)] = P(L < D) = E[Φ((mean - L) / std)].
    """
    mean, std = number(mean, "mean"), number(std, "std")
    if math.isnan(mean) or math.isnan(std):
        return math.nan
    if std < 0:
        raise ValueError(f"std={std:g}: expected a number that is not below 0")
    if mean > 0:  # keeps P(i beats j) + P(j beats i) = 1 to the last bit
        return 1.0 - expected_sigmoid(-mean, std)
    if mean == 0:
        return 0.5
    if std == 0 or math.isinf(mean):
        return float(sigmoid(np.array(mean)))
    if std < 1:
        density = np.exp(-0.5 * _NORMAL**2)
        return float(density @ sigmoid(mean + std * _NORMAL) / density.sum())
    small = np.exp(-np.abs(_LOGISTIC))
    density = small / (1.0 + small) ** 2
    scale = -1.0 / (std * math.sqrt(2.0))
    normal_cdf = np.array([0.5 * math.erfc((mean - x) * scale) for x in _LOGISTIC])
    return float(density @ normal_cdf / density.sum())


def win_probability(mean_i: float, std_i: float | None, mean_j: float, std_j: float | None) -> float:
    """P(i is better than j), Eq. 4: E[sigmoid(D)] with D ~ N(mean_i - mean_j, std_i² + std_j²).

    Without a std on either side it is sigmoid(mean_i - mean_j), the Bradley-Terry probability of the means.
    Raises TypeError for what is not a number, ValueError for a std below 0.
    """
    difference = number(mean_i, "mean_i") - number(mean_j, "mean_j")
    stds = [_std(std, name) for std, name in ((std_i, "std_i"), (std_j, "std_j")) if std is not None]
    return expected_sigmoid(difference, math.hypot(*stds) if len(stds) == 2 else 0.0)


def _std(value: object, name: str) -> float:
    std = number(value, name, "a number or None")
    if std < 0:
        raise ValueError(f"{name}={std:g}: expected a number that is not below 0")
    return std
