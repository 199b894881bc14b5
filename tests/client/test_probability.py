import itertools
import math
from typing import Any

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jrm_client.probability import expected_sigmoid, sigmoid, win_probability
from support.cases import each

MEANS = [-800.0, -60.0, -37.0, -7.3, -1.0, -1e-3, 0.0, 0.4, 3.0, 25.0, 120.0, 1e6]
STDS = [0.0, 1e-9, 0.01, 0.3, 0.999, 1.0, 1.001, 2.5, 10.0, 50.0]


def reference(mean: float, std: float) -> float:
    """E[sigmoid(mean + std Z)] with 30 digits, split where the integrand bends."""
    with mpmath.workdps(30):
        if std == 0:
            return float(1 / (1 + mpmath.exp(-mpmath.mpf(mean))))
        m, s = mpmath.mpf(mean), mpmath.mpf(std)
        density = lambda z: mpmath.exp(-z * z / 2) / (1 + mpmath.exp(-(m + s * z)))  # noqa: E731
        kink = -m / s
        width = 40 / s
        points = {mpmath.mpf(p) for p in (-14, -5, 0, 5, 14)}
        points |= {p for p in (kink - width, kink - width / 8, kink, kink + width / 8, kink + width) if abs(p) < 14}
        return float(mpmath.quad(density, sorted(points)) / mpmath.sqrt(2 * mpmath.pi))


@each(("mean", "std"), itertools.product(MEANS, STDS))
def test_against_high_precision_integration(mean: float, std: float) -> None:
    assert expected_sigmoid(mean, std) == pytest.approx(reference(mean, std), abs=1e-9)


@given(st.floats(-1e4, 1e4), st.floats(0, 1e3))
def test_is_a_probability_and_the_two_sides_add_up_to_one(mean: float, std: float) -> None:
    p = expected_sigmoid(mean, std)
    assert 0.0 <= p <= 1.0
    assert p + expected_sigmoid(-mean, std) == 1.0


@given(st.floats(-20, 20), st.floats(0, 50))
def test_grows_with_the_mean(mean: float, std: float) -> None:
    assert expected_sigmoid(mean + 0.5, std) > expected_sigmoid(mean, std)


def test_variances_add_up() -> None:
    assert win_probability(1.0, 3.0, 0.5, 4.0) == expected_sigmoid(0.5, 5.0)


def test_without_a_std_it_is_the_sigmoid_of_the_difference() -> None:
    assert win_probability(1.0, None, 0.0, 2.0) == pytest.approx(1 / (1 + math.exp(-1)))
    assert win_probability(-1000.0, None, 0.0, None) == 0.0


def test_equals_are_even() -> None:
    assert win_probability(0.3, 7.0, 0.3, 7.0) == 0.5


def test_what_is_not_a_number_stays_so() -> None:
    assert math.isnan(win_probability(math.nan, 1.0, 0.0, 1.0))
    assert math.isnan(win_probability(0.0, 1.0, 0.0, math.nan))


def test_a_std_may_be_small_or_0() -> None:
    assert win_probability(1.0, 0.0, 0.5, 0.3) == expected_sigmoid(0.5, 0.3)


def test_without_uncertainty_it_is_the_sigmoid_to_the_last_bit() -> None:
    for mean in MEANS:
        exact = float(sigmoid(np.array(-abs(mean))))
        assert expected_sigmoid(mean, 0.0) == (1.0 - exact if mean > 0 else exact)


@each(
    ("arguments", "error", "message"),
    [
        (("1", 1.0, 0.0, 1.0), TypeError, "mean_i='1': expected a number$"),
        ((1.0, "1", 0.0, 1.0), TypeError, "std_i='1': expected a number or None$"),
        ((1.0, 1.0, None, 1.0), TypeError, "mean_j=None: expected a number$"),
        ((1.0, 1.0, 0.0, [1.0]), TypeError, r"std_j=\[1.0\]: expected a number or None$"),
        ((1.0, -1.0, 0.0, 1.0), ValueError, "std_i=-1: expected a number that is not below 0$"),
        ((1.0, 1.0, 0.0, -0.5), ValueError, "std_j=-0.5: expected"),
    ],
)
def test_what_is_no_reward(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        win_probability(*arguments)


@each(
    ("mean", "std", "error", "message"),
    [
        ("1", 1.0, TypeError, "mean='1'"),
        (1.0, None, TypeError, "std=None"),
        (1.0, -0.5, ValueError, "std=-0.5: expected"),
    ],
)
def test_what_is_no_normal_distribution(mean: Any, std: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        expected_sigmoid(mean, std)
