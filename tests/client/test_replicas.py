"""The state machine alone, on a clock of the test's own."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from jrm_client.replicas import Attempt, Replicas, first_turn, rotated
from jrm_client.retry import CONNECT_TIMEOUT, FIRST_EJECTION, MAX_EJECTION, SILENCE, Backoff

EXACT = Backoff(FIRST_EJECTION, MAX_EJECTION, uniform=lambda low, high: 1.0)


def fleet(names: str = "ab") -> Replicas:
    return Replicas(names, EXACT)


def fail(replicas: Replicas, name: str, now: float, retry_after: float | None = None) -> None:
    replicas.failed(replicas.start(name, now), now, retry_after)


def test_fewest_outstanding_requests() -> None:
    replicas = fleet("abc")
    attempts = [replicas.start(name, 0.0) for name in "aabc"]
    replicas.answered(attempts[3])
    assert replicas.choose(0.0, {}) == ("c", 0.0)


def test_equals_take_turns() -> None:
    replicas = fleet("abc")
    asked = []
    for _ in range(6):
        name, _ = replicas.choose(0.0, {})
        replicas.answered(replicas.start(name, 0.0))
        asked.append(name)
    assert asked == list("abcabc")


def test_a_replica_that_failed_is_left_alone_for_longer_each_time() -> None:
    replicas = fleet()
    now = 0.0
    for ejection in (FIRST_EJECTION, 2 * FIRST_EJECTION, 4 * FIRST_EJECTION):
        fail(replicas, "a", now)
        attempt = replicas.start("b", now)
        assert replicas.choose(now + 0.99 * ejection, {}) == ("b", 0.0)
        assert replicas.choose(now + ejection, {}) == ("a", 0.0)
        replicas.answered(attempt)
        now += ejection


def test_an_ejection_ends_even_if_the_replica_asked_for_hours() -> None:
    replicas = fleet()
    fail(replicas, "a", 0.0, retry_after=3600.0)
    replicas.start("b", 0.0)
    assert replicas.choose(MAX_EJECTION - 0.01, {})[0] == "b"
    assert replicas.choose(MAX_EJECTION, {})[0] == "a"


def test_one_request_tries_a_replica_that_was_ejected() -> None:
    replicas = fleet()
    fail(replicas, "a", 0.0)
    for _ in range(3):
        replicas.start("b", 0.0)
    trial = replicas.start("a", FIRST_EJECTION)
    assert replicas.choose(FIRST_EJECTION, {}) == ("b", 0.0)
    replicas.answered(trial)
    assert replicas.choose(FIRST_EJECTION, {}) == ("a", 0.0)


def test_a_trial_that_lasts_has_a_connection_and_counts_as_passed() -> None:
    replicas = fleet()
    fail(replicas, "a", 0.0)
    for name in "bba":
        replicas.start(name, FIRST_EJECTION)
    assert replicas.choose(FIRST_EJECTION + CONNECT_TIMEOUT, {}) == ("a", 0.0)


def test_a_trial_that_is_given_up_makes_room_for_another() -> None:
    replicas = fleet()
    fail(replicas, "a", 0.0)
    replicas.start("b", 0.0)
    replicas.abandoned(replicas.start("a", FIRST_EJECTION))
    assert replicas.choose(FIRST_EJECTION, {}) == ("a", 0.0)


def test_a_replica_that_lets_a_call_run_out_of_time_is_doubtful_until_it_answers() -> None:
    replicas = fleet()
    replicas.silent(replicas.start("a", 0.0), SILENCE)
    replicas.start("b", SILENCE)
    assert replicas.choose(SILENCE, {})[0] == "b"
    now = SILENCE + FIRST_EJECTION
    assert replicas.choose(now, {})[0] == "a"
    attempt = replicas.start("a", now)
    assert attempt.doubtful
    replicas.answered(attempt)
    assert not replicas.start("a", now).doubtful


def test_a_short_silence_says_nothing() -> None:
    replicas = fleet()
    replicas.silent(replicas.start("a", 0.0), SILENCE / 2)
    replicas.start("b", SILENCE)
    assert replicas.choose(SILENCE, {}) == ("a", 0.0)
    assert not replicas.start("a", SILENCE).doubtful


def test_requests_that_fail_together_are_one_failure() -> None:
    replicas = fleet()
    for attempt in [replicas.start("a", 0.0) for _ in range(8)]:
        replicas.failed(attempt, 0.0)
    replicas.start("b", 0.0)
    assert replicas.choose(FIRST_EJECTION, {}) == ("a", 0.0)


def test_an_answer_to_an_older_request_does_not_end_an_ejection() -> None:
    replicas = fleet()
    older = replicas.start("a", 0.0)
    fail(replicas, "a", 0.0)
    replicas.answered(older)
    assert replicas.choose(0.0, {})[0] == "b"


def test_when_all_are_out_they_are_asked_as_if_none_were() -> None:
    replicas = fleet()
    for name in "ab":
        fail(replicas, name, 0.0)
    assert replicas.choose(0.0, {"a": 0.5}) == ("b", 0.0)
    assert replicas.choose(0.0, {"a": 0.5, "b": 0.75}) == ("a", 0.5)


def test_when_all_are_out_one_on_trial_is_the_better_choice() -> None:
    replicas = fleet()
    fail(replicas, "a", 0.0)
    replicas.start("a", FIRST_EJECTION)
    fail(replicas, "b", FIRST_EJECTION)
    assert replicas.choose(FIRST_EJECTION, {}) == ("a", 0.0)


def test_a_request_goes_elsewhere_at_once_and_back_only_after_its_delay() -> None:
    replicas = fleet()
    assert replicas.choose(0.0, {"a": 0.25}) == ("b", 0.0)
    assert replicas.choose(0.0, {"a": 0.25, "b": 0.5}) == ("a", 0.25)


def test_new_addresses_keep_what_is_known_of_the_old_ones() -> None:
    replicas = fleet()
    fail(replicas, "a", 0.0)
    gone = replicas.start("b", 0.0)
    replicas.replace("ac")
    assert replicas.names == ("a", "c")
    assert replicas.choose(0.0, {}) == ("c", 0.0)
    replicas.failed(gone, 0.0)  # still under way when its replica left


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 12))
def test_ranks_that_ask_at_once_ask_all_replicas_alike(world: int, count: int, requests: int) -> None:
    names = [f"{number}" for number in range(count)]
    asked: Counter[str] = Counter(dict.fromkeys(names, 0))
    for rank in range(world):
        replicas = Replicas(rotated(names, first_turn({"RANK": f"{rank}", "WORLD_SIZE": f"{world}"})), EXACT)
        for _ in range(requests):
            name, _ = replicas.choose(0.0, {})
            replicas.start(name, 0.0)
            asked[name] += 1
    assert max(asked.values()) - min(asked.values()) <= 1


def test_who_has_no_number_begins_anywhere() -> None:
    for environment in ({}, {"RANK": "1"}, {"RANK": "4", "WORLD_SIZE": "4"}, {"RANK": "-1", "WORLD_SIZE": "4"}):
        turns = {first_turn(environment) for _ in range(3)}
        assert len(turns) == 3
        assert all(0 <= turn < 1 for turn in turns)


def test_a_fleet_has_a_replica() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Replicas([])


class Fleet(RuleBasedStateMachine):
    """Requests come and go in any order, against a model that knows only what happened to each replica last."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.replicas = fleet("abc")
        self.under_way: list[Attempt] = []
        self.failures = dict.fromkeys("abc", 0)
        self.closed_until = dict.fromkeys("abc", 0.0)

    def outstanding(self, name: str) -> int:
        return sum(attempt.replica.name == name for attempt in self.under_way)

    @rule(seconds=st.sampled_from([0.0, 0.4, 1.0, 5.0, 40.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(waits=st.dictionaries(st.sampled_from("abc"), st.sampled_from([0.0, 0.5, 60.0])))
    def send(self, waits: dict[str, float]) -> None:
        name, wait = self.replicas.choose(self.now, {one: self.now + seconds for one, seconds in waits.items()})
        allowed = {one for one in "abc" if not waits.get(one)}
        open_now = {one for one in "abc" if self.closed_until[one] <= self.now}
        if allowed & open_now:
            assert wait == 0
            assert name in allowed & open_now
            assert self.outstanding(name) == min(map(self.outstanding, allowed & open_now))
        elif allowed and not open_now:
            assert wait == 0
            assert name in allowed
        else:
            assert wait > 0
            return
        if self.failures[name] and name in open_now:
            self.closed_until[name] = self.now + CONNECT_TIMEOUT
        self.under_way.append(self.replicas.start(name, self.now))

    def end(self, data: st.DataObject) -> tuple[Attempt, bool]:
        attempt = self.under_way.pop(data.draw(st.integers(0, len(self.under_way) - 1)))
        return attempt, attempt.era == attempt.replica.era

    @precondition(lambda self: self.under_way)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        attempt, news = self.end(data)
        self.replicas.answered(attempt)
        if news:
            self.failures[attempt.replica.name] = 0
            self.closed_until[attempt.replica.name] = 0.0

    @precondition(lambda self: self.under_way)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        attempt, news = self.end(data)
        self.replicas.failed(attempt, self.now)
        if news:
            name = attempt.replica.name
            self.failures[name] += 1
            self.closed_until[name] = self.now + min(MAX_EJECTION, FIRST_EJECTION * 2 ** (self.failures[name] - 1))

    @invariant()
    def every_attempt_is_counted_once(self) -> None:
        assert all(attempt.replica.outstanding == self.outstanding(attempt.replica.name) for attempt in self.under_way)


TestFleet = Fleet.TestCase
TestFleet.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


def test_a_request_that_may_only_go_to_some_waits_for_them() -> None:
    replicas = fleet("abc")
    assert replicas.choose(0.0, {"b": 5.0, "c": 7.0}, {"b", "c"}) == ("b", 5.0)
    assert replicas.choose(0.0, {"b": 5.0}, {"gone"})[1] == 0.0
