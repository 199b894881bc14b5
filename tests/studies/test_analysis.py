import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from studies.analysis import principal_components, procrustes, spectrum


def cross(*lengths: float) -> np.ndarray:
    """Two points on each axis, at plus and minus its length: centred, with known singular values, √2 times these."""
    arms = np.diag(lengths)
    return np.concatenate([arms, -arms])


def cloud(seed: int, count: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, width))


def rotation(seed: int, width: int) -> np.ndarray:
    return np.linalg.qr(cloud(seed, width, width))[0]


def test_equal_directions_all_count():
    found = spectrum(cross(1, 1, 1, 1, 1))
    np.testing.assert_allclose(found.singular_values, np.ones(5))
    assert found.effective_rank == pytest.approx(5)
    assert found.spectral_entropy == pytest.approx(math.log(5))
    assert found.isotropy == pytest.approx(1)


def test_one_direction_counts_once():
    found = spectrum(np.outer(np.arange(9.0), [1.0, -2.0, 0.5, 3.0]))
    assert found.effective_rank == pytest.approx(1)
    assert found.spectral_entropy == pytest.approx(0, abs=1e-12)
    assert found.isotropy == pytest.approx(1 / 4)


def test_entropy_weighs_singular_values_and_isotropy_energies():
    found = spectrum(cross(3, 1))
    np.testing.assert_allclose(found.singular_values, [1, 1 / 3])
    assert found.spectral_entropy == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert found.effective_rank == pytest.approx(math.exp(found.spectral_entropy))
    assert found.isotropy == pytest.approx((9 + 1) ** 2 / (2 * (81 + 1)))


@given(st.integers(0, 1000), st.floats(1e-3, 1e3), st.floats(-10, 10))
def test_shift_scale_and_rotation_change_nothing(seed, scale, shift):
    h = cloud(seed, 12, 5)
    before, after = spectrum(h), spectrum(scale * (h @ rotation(seed + 1, 5) + shift))
    np.testing.assert_allclose(after.singular_values, before.singular_values, atol=1e-9)
    assert after.effective_rank == pytest.approx(before.effective_rank)
    assert after.isotropy == pytest.approx(before.isotropy)


@given(st.integers(0, 1000), st.integers(2, 9), st.integers(1, 9))
def test_measures_stay_within_their_bounds(seed, count, width):
    found = spectrum(cloud(seed, count, width))
    directions = min(count - 1, width)
    assert len(found.singular_values) == directions
    assert 1 <= found.effective_rank <= directions + 1e-9
    assert 1 / directions - 1e-9 <= found.isotropy <= 1 + 1e-9


def test_a_direction_that_centring_takes_does_not_count():
    """Three points span two directions around their mean, however wide they are."""
    assert spectrum(np.eye(3)).isotropy == pytest.approx(1)


def test_a_flatter_spectrum_has_more_of_everything():
    steep, flat = spectrum(cross(8, 4, 2, 1)), spectrum(cross(4, 3, 2, 1))
    assert flat.spectral_entropy > steep.spectral_entropy
    assert flat.effective_rank > steep.effective_rank
    assert flat.isotropy > steep.isotropy


def test_half_precision_states_are_analysed_in_double():
    assert spectrum(cross(1, 1, 1).astype(np.float16)).singular_values.dtype == np.float64


def test_equal_states_have_no_spectrum():
    with pytest.raises(ValueError, match="all 7 hidden states are equal"):
        spectrum(np.full((7, 3), 0.1))


@pytest.mark.parametrize("h", [np.zeros(3), np.zeros((1, 3)), np.zeros((3, 0)), np.zeros((2, 2, 2))])
def test_states_are_rows(h):
    with pytest.raises(ValueError, match="must be"):
        spectrum(h)


def test_states_must_be_finite():
    with pytest.raises(ValueError, match="not finite"):
        spectrum([[1.0, math.nan], [0.0, 1.0]])


def test_components_are_in_order_of_variance():
    found = principal_components(cross(1, 4, 2, 3) + 5.0)
    np.testing.assert_allclose(found, cross(1, 4, 2, 3)[:, [1, 3, 2]], atol=1e-12)


@given(st.integers(0, 1000))
def test_all_components_keep_all_distances(seed):
    h = cloud(seed, 8, 4)
    found = principal_components(h, 4)
    np.testing.assert_allclose(found @ found.T, (h - h.mean(0)) @ (h - h.mean(0)).T, atol=1e-9)


@pytest.mark.parametrize("count", [0, 4])
def test_there_are_no_more_components_than_directions(count):
    with pytest.raises(ValueError, match=f"{count} components"):
        principal_components(cloud(0, 3, 6), count)


@given(st.integers(0, 1000), st.booleans())
def test_alignment_undoes_a_turn_and_a_shift(seed, mirrored):
    onto = cloud(seed, 10, 3)
    turned = onto @ rotation(seed + 1, 3) * ([-1, 1, 1] if mirrored else 1) + [4.0, -2.0, 9.0]
    np.testing.assert_allclose(procrustes(turned, onto), onto, atol=1e-9)


def test_alignment_keeps_the_spread():
    points, onto = cloud(1, 10, 3), 7 * cloud(2, 10, 3)
    aligned = procrustes(points, onto)
    assert aligned.std(axis=0).mean() < onto.std(axis=0).mean() / 3
    np.testing.assert_allclose(aligned.var(axis=0).sum(), points.var(axis=0).sum())


@given(st.integers(0, 1000))
def test_no_other_turn_comes_nearer(seed):
    points, onto = cloud(seed, 6, 3), cloud(seed + 1, 6, 3)
    points, onto = points - points.mean(0), onto - onto.mean(0)
    best = np.linalg.norm(procrustes(points, onto) - onto)
    assert best <= np.linalg.norm(points @ rotation(seed + 2, 3) - onto) + 1e-9


def test_aligned_sets_have_the_same_shape():
    with pytest.raises(ValueError, match="shapes must be equal"):
        procrustes(cloud(0, 4, 3), cloud(0, 5, 3))
