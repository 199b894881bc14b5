"""Drain rate and busy share, with the time in hand."""

from __future__ import annotations

import math

import pytest

from jrm_service.scoring.rates import BusyShare, DrainRate


def test_without_a_measurement_nothing_takes_any_time() -> None:
    assert DrainRate().seconds_for(10, now=5.0) == 0.0


def test_a_steady_rate_is_measured_exactly() -> None:
    rate = DrainRate()
    rate.resume(100.0)
    for second in range(1, 6):
        rate.record(20, 100.0 + second)
    assert rate.seconds_for(50, now=105.0) == pytest.approx(2.5)


def test_an_idle_hour_does_not_count() -> None:
    rate = DrainRate()
    rate.resume(0.0)
    rate.record(20, 1.0)
    rate.resume(3600.0)
    rate.record(20, 3601.0)
    assert rate.seconds_for(20, now=3601.0) == pytest.approx(1.0)


def test_recent_batches_weigh_more() -> None:
    rate = DrainRate()
    rate.resume(0.0)
    rate.record(100, 1.0)
    for second in range(2, 40):
        rate.record(10, float(second))
    assert rate.seconds_for(10, now=39.0) == pytest.approx(1.0, rel=0.01)


def test_a_stalled_device_counts_as_slow() -> None:
    rate = DrainRate()
    rate.resume(0.0)
    rate.record(10, 1.0)
    assert rate.seconds_for(10, now=21.0) == pytest.approx(20.0)
    assert rate.seconds_for(10, now=1001.0) == pytest.approx(1000.0)


def test_a_device_that_always_works_is_fully_busy_in_the_end() -> None:
    share = BusyShare(0.0)
    share.switch(True, 0.0)
    assert share.at(0.0) == 0.0
    assert share.at(60.0) == pytest.approx(1 - 1 / math.e)
    assert share.at(1e5) == pytest.approx(1.0)


def test_half_the_time_is_half_the_share() -> None:
    share = BusyShare(0.0)
    for second in range(1000):
        share.switch(second % 2 == 0, float(second))
    assert share.at(1000.0) == pytest.approx(0.5, abs=0.01)


def test_an_idle_device_fades_and_reading_changes_nothing() -> None:
    share = BusyShare(0.0)
    share.switch(True, 0.0)
    share.switch(False, 600.0)
    assert share.at(660.0) == share.at(660.0) == pytest.approx(1 / math.e, rel=1e-3)
