"""Rewards over time, by a clock that the test turns."""

import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jrm_service.api.watch.window import BUCKETS, FIRST_SECONDS, HOUR, MOST_SECONDS, Numbers, Window

START = 1_700_000_000.0


class Clock:
    def __init__(self):
        self.now = START

    def __call__(self) -> float:
        return self.now


def group(*rewards: float, errors: int = 0, model: str = "judge", **dimensions: list[float]) -> Numbers:
    means = dimensions or {"quality": list(rewards)}
    return Numbers(model, np.array(rewards), {name: np.array(values) for name, values in means.items()}, errors)


def test_a_bucket_says_what_its_groups_were():
    window = Window(Clock())
    window.add(group(1.0, 3.0, errors=1, a=[0.0, 2.0], b=[2.0, 4.0]))
    window.add(group(2.0, 2.0 + 1e-7, a=[1.0, 1.0], b=[3.0, 3.0]))
    window.add(group(5.0, a=[5.0], b=[5.0]))
    window.add(group(errors=3))
    [bucket] = window.document()["buckets"]
    assert (bucket["groups"], bucket["candidates"], bucket["errors"], bucket["compared"]) == (4, 9, 4, 2)
    assert (bucket["error_share"], bucket["no_spread_share"], bucket["group_std"]) == (0.444444, 0.5, 0.5)
    assert (bucket["reward"]["count"], bucket["reward"]["mean"]) == (5, 2.6)
    assert bucket["dimensions"]["a"]["quantiles"][2] == 1.0
    assert bucket["dimensions"]["b"]["mean"] == 3.4


def test_rewards_of_two_models_are_not_compared():
    clock = Clock()
    window = Window(clock)
    for _ in range(200):
        window.add(group(1.0, 2.0))
    clock.now += 2 * HOUR
    window.add(group(101.0, 103.0, model="reloaded"))
    document = window.document()
    assert (document["first_hour"]["groups"], document["first_hour"]["complete"]) == (1, False)
    assert document["drift"]["reward"] == {"shift": None, "psi": None}
    assert [bucket["reward"]["mean"] for bucket in document["buckets"]] == [102.0]
    assert document["bucket_seconds"] == FIRST_SECONDS
    assert window.groups == 201, "readers are told that something has changed"


def test_time_without_groups_has_no_bucket():
    clock = Clock()
    window = Window(clock)
    for pause in (0, 1, FIRST_SECONDS * 20, FIRST_SECONDS):
        clock.now += pause
        window.add(group(1.0, 2.0))
    document = window.document()
    assert [bucket["groups"] for bucket in document["buckets"]] == [2, 1, 1]
    assert [bucket["start"] - START for bucket in document["buckets"]] == [0, 200, 210]
    assert document["bucket_seconds"] == FIRST_SECONDS


def test_buckets_double_until_all_there_was_is_in_them():
    clock = Clock()
    window = Window(clock)
    for _ in range(1000):
        window.add(group(1.0, 2.0, errors=1))
        clock.now += 10
    document = window.document()
    assert document["bucket_seconds"] == 320
    assert len(document["buckets"]) <= BUCKETS
    assert sum(bucket["groups"] for bucket in document["buckets"]) == 1000
    assert sum(bucket["reward"]["count"] for bucket in document["buckets"]) == 2000


@given(st.lists(st.floats(0.0, 40_000.0), min_size=1, max_size=60))
def test_memory_is_bounded_whatever_the_pauses(pauses):
    clock = Clock()
    window = Window(clock)
    for pause in pauses:
        clock.now += pause
        window.add(group(1.0, 2.0))
    document = window.document()
    starts = [bucket["start"] for bucket in document["buckets"]]
    seconds = document["bucket_seconds"]
    assert len(starts) <= BUCKETS
    assert starts == sorted(set(starts))
    assert all(start % seconds == 0 for start in starts)
    assert starts[-1] <= clock.now < starts[-1] + seconds
    assert starts[0] > starts[-1] - BUCKETS * seconds
    if seconds < MOST_SECONDS:
        assert sum(bucket["groups"] for bucket in document["buckets"]) == len(pauses)


def test_a_clock_that_is_set_back_loses_nothing():
    clock = Clock()
    window = Window(clock)
    window.add(group(1.0, 2.0))
    clock.now -= 5_000
    window.add(group(1.0, 2.0))
    assert [bucket["groups"] for bucket in window.document()["buckets"]] == [2]


def test_the_newest_rewards_are_compared_with_the_first_hour():
    """What hacking looks like: one dimension rises, the other falls, groups lose their spread."""
    clock, random = Clock(), np.random.default_rng(0)
    window = Window(clock)

    def run(minutes: int, follows: float, quality: float) -> None:
        for _ in range(minutes):
            means = {"follows": random.normal(follows, 1.0, 12), "quality": random.normal(quality, 1.0, 12)}
            window.add(Numbers("judge", (means["follows"] + means["quality"]) / 2, means, 0))
            clock.now += 60

    run(59, 0.0, 0.0)
    assert window.document()["first_hour"]["complete"] is False
    run(180, 2.0, -1.0)
    document = window.document()
    assert document["first_hour"]["complete"] is True
    assert document["first_hour"]["groups"] in (59, 60)
    assert document["now"]["reward"]["count"] >= 200
    drift = document["drift"]["dimensions"]
    assert 1.6 < drift["follows"]["shift"] < 2.3
    assert -1.3 < drift["quality"]["shift"] < -0.7
    assert drift["follows"]["psi"] > 0.25


def test_the_first_hour_ends():
    clock = Clock()
    window = Window(clock)
    window.add(group(*[1.0] * 200))
    clock.now += HOUR
    window.add(group(9.0))
    document = window.document()
    assert document["first_hour"]["reward"]["mean"] == 1.0
    assert document["now"]["reward"]["count"] == 201  # one is too few to leave any out


def test_a_few_edits_that_were_tried_are_not_the_first_hour():
    """Somebody tries an example, and two hours later the trainer starts."""
    clock, random = Clock(), np.random.default_rng(0)
    window = Window(clock)
    window.add(group(*random.normal(5.0, 0.1, 6)))
    clock.now += 2 * HOUR

    def train(groups: int) -> dict:
        for _ in range(groups):
            window.add(group(*random.normal(0.0, 1.0, 12)))
            clock.now += 1
        return window.document()

    document = train(16)
    assert document["first_hour"]["complete"] is False
    assert document["drift"]["reward"] == {"shift": None, "psi": None}
    assert document["drift"]["dimensions"] == {"quality": {"shift": None, "psi": None}}
    document = train(100)
    assert document["first_hour"]["complete"] is True
    assert document["first_hour"]["reward"]["count"] == 210
    assert abs(document["drift"]["reward"]["shift"]) < 0.4


def test_before_the_first_group_there_is_nothing_to_compare():
    assert Window(Clock()).document() == {
        "bucket_seconds": FIRST_SECONDS,
        "buckets": [],
        "first_hour": None,
        "now": None,
        "drift": None,
    }


def test_a_full_window_is_a_small_document():
    """It is sent once a second to each reader."""
    clock, random = Clock(), np.random.default_rng(0)
    window = Window(clock)
    for _ in range(BUCKETS):
        rewards = random.normal(size=600)
        window.add(Numbers("judge", rewards, {"instruction_following": rewards, "visual_quality": rewards}, 3))
        clock.now += FIRST_SECONDS
    document = window.document()
    assert len(document["buckets"]) == BUCKETS
    assert len(json.dumps(document, separators=(",", ":"))) < 50_000
