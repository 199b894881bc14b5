"""The retry loop alone, with a fleet that only counts."""

import asyncio
from collections.abc import Sequence

import pytest

from benchmarks import virtual_time
from client.conftest import FAST
from jrm_client import APIConnectionError, APIStatusError, Backoff, JRMError, attempts
from jrm_client.deadline import Deadline
from jrm_client.replicas import Replicas
from jrm_client.retry import Schedule

FOREVER = Backoff(3600.0, 3600.0)
DOWN = APIConnectionError("down")
BROKEN = APIConnectionError("broken", sent=True)


class Fleet:
    """Replicas that stay as they are. ``looks``: whether one was failing, for each time that they were looked up."""

    def __init__(self, names: str) -> None:
        self.replicas = Replicas(names)
        self.looks: list[bool] = []

    async def refresh(self, *, failing: bool = False) -> None:
        self.looks.append(failing)


class Call:
    """Asks a fleet until the ``failures`` are used up; then the answer is the replica's name."""

    def __init__(self, names: str, *failures: JRMError, retries: int = 5, backoff: Backoff = FAST) -> None:
        self.fleet = Fleet(names)
        self.schedule = Schedule(retries, backoff)
        self.asked: list[str] = []
        self.deadline: Deadline | None = None
        self._failures = iter(failures)

    async def _ask(self, replica: str) -> str:
        self.asked.append(replica)
        for failure in self._failures:
            raise failure
        return replica

    def run(self) -> str:
        async def run() -> str:
            self.deadline = Deadline.after(60.0)
            return await attempts.until_answered(self.fleet, self._ask, self.schedule, self.deadline)

        return virtual_time.run(run(), grace_s=0.0)  # so that only delays take time, however busy the machine is

    def fails(self) -> JRMError:
        with pytest.raises(JRMError) as failure:
            self.run()
        return failure.value


def repeated(failure: JRMError, times: int = 99) -> Sequence[JRMError]:
    return [failure] * times


def test_the_first_answer_is_returned() -> None:
    call = Call("ab")
    assert call.run() == "a"
    assert call.fleet.looks == [False]


def test_after_a_failure_another_replica_is_asked() -> None:
    call = Call("ab", DOWN)
    assert call.run() == "b"
    assert call.fleet.looks == [False, True]
    assert set(call.schedule.ready) == {"a"}
    assert call.deadline is not None
    assert call.deadline.failure is DOWN


def test_a_refusal_that_is_not_the_replicas_fault_is_no_reason_to_look_for_others() -> None:
    call = Call("ab", APIStatusError("", status=429))
    assert call.run() == "b"
    assert call.fleet.looks == [False, False]


def test_a_refusal_for_good_is_raised_at_once() -> None:
    refusal = APIStatusError("", status=400)
    call = Call("ab", refusal)
    assert call.fails() is refusal
    assert call.asked == ["a"]


def test_after_the_504_of_a_proxy_another_replica_is_asked_if_there_is_one() -> None:
    timeout = APIStatusError("", status=504)
    assert Call("ab", timeout).run() == "b"
    assert Call("a", timeout).fails() is timeout


def test_the_same_replica_is_asked_again_after_its_delay() -> None:
    call = Call("a", DOWN, DOWN)
    assert call.run() == "a"
    assert call.asked == ["a"] * 3


def test_the_last_failure_is_raised_when_the_attempts_are_used_up() -> None:
    call = Call("ab", DOWN, DOWN, BROKEN, retries=1)
    assert call.fails() is BROKEN
    assert len(call.asked) == 3


def test_a_failure_is_raised_at_once_when_the_deadline_comes_before_the_next_attempt() -> None:
    call = Call("ab", *repeated(DOWN), backoff=FOREVER)
    assert call.fails() is DOWN
    assert call.asked == ["a", "b"]


def test_a_server_that_asks_for_more_time_than_there_is_is_not_asked_again() -> None:
    draining = APIStatusError("", status=503, retry_after=3600.0)
    call = Call("a", draining)
    assert call.fails() is draining
    assert call.asked == ["a"]


def test_a_large_fleet_is_not_asked_for_all_attempts_at_once() -> None:
    call = Call("abcdef", *repeated(DOWN), backoff=FOREVER)
    assert call.fails() is DOWN
    assert call.asked == list("abcd")


def test_a_request_that_breaks_servers_goes_to_no_others() -> None:
    call = Call("abcdef", *repeated(BROKEN))
    assert call.fails() is BROKEN
    assert len(call.asked) == 4 + 5
    assert set(call.asked) == set("abcd")


def test_a_silent_replica_gives_a_sign_of_life_before_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "GREETING_TIMEOUT", 0.01)
    replicas = Replicas("a")
    greeted: list[str] = []

    async def greet() -> None:
        greeted.append("a")

    async def ask(greet: object) -> None:
        async with attempts.recorded(replicas, "a", greet, Deadline.after(60.0)):
            greeted.append("asked")

    async def run() -> None:
        replicas.silent(replicas.start("a", -100.0), 0.0)
        with pytest.raises(APIConnectionError, match="a accepts requests but never answers"):
            await ask(asyncio.Event().wait)
        await ask(greet)

    asyncio.run(run())
    assert greeted == ["a", "asked"]
