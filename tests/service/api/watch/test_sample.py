"""Many numbers in bounded memory, against numpy on all of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jrm_service.api.watch.sample import QUANTILES, Sample, rounded, shift, stability_index

VALUES = st.lists(st.floats(-1e6, 1e6), max_size=30).map(lambda values: np.array(values, dtype=np.float64))


def sample(values, size=4096) -> Sample:
    made = Sample(size, np.random.default_rng(0))
    made.add(np.asarray(values, dtype=np.float64))
    return made


@given(st.lists(VALUES, max_size=8), st.integers(1, 40), st.integers(0, 8))
def test_moments_are_those_of_all_numbers_however_they_came(pieces, size, cut):
    first, second = Sample(size, np.random.default_rng(1)), Sample(size, np.random.default_rng(2))
    for piece in pieces[:cut]:
        first.add(piece)
    for piece in pieces[cut:]:
        second.add(piece)
    first.merge(second)
    everything = np.concatenate([*pieces, np.empty(0)])
    assert first.count == len(everything)
    assert len(first.kept) == min(size, len(everything))
    assert set(first.kept.tolist()) <= set(everything.tolist())
    if len(everything):
        spread = np.ptp(everything) + 1e-9
        assert first.mean == pytest.approx(everything.mean(), rel=1e-9, abs=1e-9 * spread)
        assert first.std == pytest.approx(everything.std(), rel=1e-6, abs=1e-6 * spread)


def test_quantiles_of_few_numbers_are_exact():
    values = np.random.default_rng(3).normal(size=500)
    assert sample(values, 512).document()["quantiles"] == [rounded(v) for v in np.quantile(values, QUANTILES)]


def test_quantiles_of_many_numbers_are_near_and_no_place_is_preferred():
    """A sorted stream: a sample that favoured early or late numbers would be off by far more."""
    made = Sample(512, np.random.default_rng(4))
    for piece in np.array_split(np.linspace(0, 1, 50_000), 700):
        made.add(piece)
    assert np.allclose(made.document()["quantiles"], QUANTILES, atol=0.07)


def test_a_merged_sample_has_a_share_of_each_by_how_many_there_were():
    few, many = sample(np.zeros(1000), 512), sample(np.ones(9000), 512)
    few.merge(many)
    assert len(few.kept) == 512
    assert 0.85 < few.kept.mean() < 0.95


def test_nothing_has_no_summary():
    assert sample([]).document() == {"count": 0, "mean": None, "std": None, "quantiles": None}


def test_a_shift_is_in_standard_deviations_of_the_reference():
    reference = sample([-1.0, 1.0] * 50)
    assert shift(reference, sample([2.5])) == 2.5
    assert shift(reference, sample([])) is None
    assert shift(sample([1.0, 1.0]), sample([2.0])) is None
    assert shift(sample([1.0]), sample([2.0])) is None


def test_the_stability_index_is_small_for_the_same_distribution_and_large_for_another():
    random = np.random.default_rng(5)
    reference = sample(random.normal(size=4000))
    same, moved = (stability_index(reference, sample(random.normal(by, size=500))) for by in (0.0, 1.0))
    assert same < 0.1
    assert moved > 0.25
    assert stability_index(reference, sample(np.zeros(19))) is None
    assert stability_index(sample(np.ones(50)), sample(np.ones(50))) == 0.0
