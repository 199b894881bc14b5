"""A small rolling restart: both replicas once, under load."""

import asyncio
import dataclasses

from benchmarks.known_rewards import KnownGroup
from benchmarks.ledger import Ledger

from benchmarks import rolling


def test_nothing_is_lost_when_both_replicas_are_restarted(tmp_path):
    first, second = rolling.replicas(tmp_path, 0.005)
    with first, second:
        rolled = asyncio.run(rolling.roll([first, second], candidates=360, callers=2))
    assert rolled.problems == []
    assert len(rolled.statuses) >= 2


def test_what_went_wrong_is_said():
    ledger = Ledger()
    group = KnownGroup(0, 12)
    ledger.group_answered(group, list(group.rewards))
    good = rolling.Rolled(12, ledger, [], [0, 0], 1.0, 1.0)
    assert good.problems == []
    assert dataclasses.replace(good, candidates=24).problems == ["12 candidates without a score"]
    assert dataclasses.replace(good, failures=["no"]).problems == ["1 calls failed, the first: no"]
    assert dataclasses.replace(good, statuses=[0, 1]).problems == ["exit statuses [0, 1]"]
    assert dataclasses.replace(good, statuses=[0]).problems == ["fewer than two restarts"]
