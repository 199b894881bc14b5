"""The token budget of a batch from the memory that is left."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jrm_service.scoring.fakes import FakeBackend, OutOfMemoryBackend, RecordingBackend
from jrm_service.scoring.planner import unshared_tokens
from jrm_service.scoring.token_budget import MOST_TOKENS, fitting_tokens, token_budget
from service.scoring.support import candidate

GiB = 2**30
TOKENS = 100  # of a candidate


class Memory:
    """A device with so many bytes left, of which a token of a batch takes ``a_token``."""

    def __init__(self, free, a_token, recording):
        self._free, self._a_token, self._recording = free, a_token, recording

    def free(self):
        return self._free

    def peak(self, run):
        run()
        return self._a_token * sum(one.tokens for one in self._recording.batches[-1])


def fitting(free, a_token, holds=10**9, size=12, **options):
    recording = RecordingBackend(OutOfMemoryBackend(FakeBackend(), tokens=holds))
    sample = [candidate(tokens=TOKENS) for _ in range(size)]
    return fitting_tokens(recording, sample, unshared_tokens, Memory(free, a_token, recording), **options)


@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        ({}, 30_000),
        ({"workers": 2}, 15_000),
        ({"free": 20 * GiB}, 15_000),
        ({"free": 40 * GiB, "peak": 20 * GiB}, 15_000),
    ],
)
def test_a_quarter_of_what_is_free_stays_free(options, tokens):
    assert token_budget(**{"free": 40 * GiB, "peak": 10 * GiB, "tokens": 10_000} | options) == tokens


@pytest.mark.parametrize(("free", "peak", "tokens"), [(-GiB, GiB, 1), (0, GiB, 1), (GiB, 1, MOST_TOKENS)])
def test_a_budget_has_bounds(free, peak, tokens):
    assert token_budget(free=free, peak=peak, tokens=1000) == tokens


def test_a_batch_that_takes_nothing_sets_no_limit():
    assert token_budget(free=GiB, peak=0, tokens=1000) == MOST_TOKENS


def test_no_tokens_is_an_error():
    with pytest.raises(ValueError, match="at least 1 token"):
        token_budget(free=GiB, peak=GiB, tokens=0)


@given(
    free=st.integers(0, 2**40),
    peak=st.integers(1, 2**37),
    tokens=st.integers(1, 2**17),
    workers=st.integers(1, 8),
)
def test_batches_of_the_budget_fit_side_by_side(free, peak, tokens, workers):
    budget = token_budget(free=free, peak=peak, tokens=tokens, workers=workers)
    assert budget == 1 or workers * budget * peak / tokens <= free


def test_the_budget_follows_what_was_measured():
    assert fitting(free=8 * GiB, a_token=2**20) == 6 * 2**10
    assert fitting(free=8 * GiB, a_token=2**20, kept=4 * GiB) == 3 * 2**10
    assert fitting(free=8 * GiB, a_token=2**20, workers=2) == 3 * 2**10


def test_a_sample_that_is_too_large_is_halved():
    assert fitting(free=8 * GiB, a_token=2**20, holds=4 * TOKENS) == 6 * 2**10


def test_where_nothing_fits_candidates_go_one_by_one(caplog):
    with caplog.at_level(logging.WARNING):
        assert fitting(free=GiB, a_token=1, holds=1) == 1
    assert "not even a single candidate" in caplog.text


def test_the_figure_is_logged(caplog):
    with caplog.at_level(logging.INFO):
        fitting(free=8 * GiB, a_token=2**20)
    assert "token budget on fake: 6144;" in caplog.text
