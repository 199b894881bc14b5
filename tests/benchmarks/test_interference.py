"""Scoring is timed in turns with and without a background, and a score that changes ends the benchmark."""

import asyncio

import pytest
from benchmarks.interference import ALONE, EXPLAINING, Interference, measure

from jrm_client import Score
from jrm_client.results import Dimension

PAIRS = [("source", f"edit {number}", "make it red") for number in range(3)]


class Recorder:
    """Stands for a client: scores by the edit's number, and knows how many explain requests run meanwhile."""

    def __init__(self, *, drift=0.0, cached=False):
        self.background = []
        self.explained = 0
        self._running = 0
        self._drift, self._cached = drift, cached

    async def score(self, _source, edited, _instruction):
        await asyncio.sleep(0)
        self.background.append(self._running)
        reward = float(edited[-1]) + self._drift * (self._running > 0)
        return Score(reward, None, {"d": Dimension(reward, None)}, self._cached, "m", "f")

    async def explain(self, _source, _edited, _instruction):
        self._running += 1
        await asyncio.sleep(0)
        self._running -= 1
        self.explained += 1
        return {}


def run(client, rounds=2, callers=2):
    return asyncio.run(measure(client, PAIRS, rounds=rounds, callers=callers))


def test_every_round_has_both_kinds_and_changes_their_order():
    client = Recorder()
    found = run(client)
    assert [{name: len(calls) for name, calls in one.items()} for one in found.rounds] == [
        {ALONE: 3, EXPLAINING: 3}
    ] * 2
    assert [list(one) for one in found.rounds] == [[ALONE, EXPLAINING], [EXPLAINING, ALONE]]
    assert found.calls == 6
    warm_up_and_alone, explaining, alone = client.background[:6], client.background[6:12], client.background[12:]
    assert not any(warm_up_and_alone + alone)
    assert all(explaining)
    assert found.explained == client.explained > 0


def test_a_score_that_differs_in_its_last_bit_ends_it():
    with pytest.raises(ExceptionGroup, match="unhandled") as raised:
        run(Recorder(drift=2e-16 * 4))
    assert raised.group_contains(RuntimeError, match="a score changed from")


def test_a_score_from_a_cache_ends_it():
    with pytest.raises(ExceptionGroup) as raised:
        run(Recorder(cached=True))
    assert raised.group_contains(RuntimeError, match="--cache-entries 0")


def test_ratios_are_taken_within_a_round():
    found = Interference([{ALONE: [1.0], EXPLAINING: [2.0]}, {ALONE: [4.0], EXPLAINING: [4.0]}])
    assert found.ratios(50) == [2.0, 1.0]
    assert found.ratio(50) == 1.5
    assert found.percentile(ALONE, 50) == 2.5
