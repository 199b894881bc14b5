"""A minute of chaos, and what the long run would say about memory."""

import asyncio
from collections import Counter

import pytest
from benchmarks.ledger import Ledger

from benchmarks import soak


@pytest.mark.heavy
def test_nothing_is_lost_in_a_minute_of_chaos(tmp_path):
    soaked = asyncio.run(soak.soak(60.0, seed=1, clients=2, pause_s=1.5, folder=tmp_path))
    assert soaked.problems == []
    assert min(soaked.done[f"{name} killed"] for name in ("Redis", "replica", "client")) >= 1


def run(memory: list[int], seconds: float = 600.0) -> soak.Soaked:
    ledger = Ledger()
    ledger.answered(0, 0, 0.5, 0.5)
    return soak.Soaked(seconds, 1, 0, ledger, Counter(), Counter(), memory, 0, [0, 0], 0.0)


def test_memory_that_grows_after_the_warm_up_is_found_in_a_long_run():
    leaking = [1000 + step for step in range(100)]
    assert run(leaking).problems == ["memory changed by +6.8%"]
    assert run(leaking, seconds=60.0).problems == []


def test_memory_that_grows_during_the_warm_up_is_not():
    assert run([100 * step for step in range(1, 21)] + [2000] * 80).growth == pytest.approx(0.0)
