"""The waiting line by example: who gets room next, and who is told at once that it would wait for too long."""

from __future__ import annotations

import asyncio

import pytest

from jrm_service.errors import Overloaded
from jrm_service.scoring.line import FairSemaphore, WaitingLine
from service.scoring.support import now, run_virtual


class Grants:
    """Callers of one share; ``order`` has the names of those that were let in."""

    def __init__(self, share: FairSemaphore) -> None:
        self.share = share
        self.order: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def ask(self, name: str, amount: int, tenant: str = "") -> None:
        """Begin to wait; returns when the caller stands in line or was let in."""

        async def wait() -> None:
            await self.share.acquire(amount, tenant)
            self.order.append(name)

        self.tasks[name] = asyncio.create_task(wait())
        await asyncio.sleep(0)

    async def leave(self, name: str) -> None:
        self.tasks[name].cancel()
        await asyncio.gather(self.tasks[name], return_exceptions=True)

    async def release(self, amount: int, tenant: str = "") -> None:
        self.share.release(amount, tenant)
        await asyncio.sleep(0)


def test_there_is_something_to_share() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        FairSemaphore(0)


def test_what_is_there_is_granted_at_once_and_nothing_more() -> None:
    async def main() -> None:
        grants = Grants(FairSemaphore(10))
        await grants.ask("first", 6)
        await grants.ask("second", 5)
        assert grants.order == ["first"]
        await grants.release(6)
        assert grants.order == ["first", "second"]
        await grants.release(5)
        assert (grants.share.in_use, grants.share.held.total(), grants.share.waiting.total()) == (0, 0, 0)

    run_virtual(main())


def test_more_than_there_is_gets_all_that_there_is() -> None:
    async def main() -> None:
        share = FairSemaphore(10)
        assert await share.acquire(3) == 3
        assert share.held == {"": 3}
        asked = asyncio.create_task(share.acquire(1000))
        await asyncio.sleep(0)
        assert not asked.done()
        share.release(3)
        assert await asked == 10
        share.release(10)
        assert (share.in_use, share.held) == (0, {})

    run_virtual(main())


def test_a_small_request_of_the_same_tenant_does_not_overtake_a_large_one() -> None:
    async def main() -> None:
        grants = Grants(FairSemaphore(10))
        await grants.ask("running", 6)
        await grants.ask("large", 8)
        await grants.ask("small", 1)
        assert grants.order == ["running"]
        await grants.release(6)
        assert grants.order == ["running", "large", "small"]

    run_virtual(main())


def test_a_tenant_that_asks_for_little_passes_one_that_asks_for_much() -> None:
    async def main() -> None:
        grants = Grants(FairSemaphore(10))
        await grants.ask("running", 10, "greedy")
        for number in range(3):
            await grants.ask(f"greedy {number}", 10, "greedy")
        await grants.ask("modest", 1, "modest")
        await grants.release(10, "greedy")
        assert grants.order == ["running", "modest"]
        await grants.release(1, "modest")
        assert grants.order == ["running", "modest", "greedy 0"]

    run_virtual(main())


def test_who_leaves_the_head_of_the_line_lets_the_next_one_in() -> None:
    async def main() -> None:
        grants = Grants(FairSemaphore(10))
        await grants.ask("running", 5)
        await grants.ask("large", 10)
        await grants.ask("small", 5)
        await grants.leave("large")
        await asyncio.sleep(0)
        assert grants.order == ["running", "small"]
        assert grants.share.waiting.total() == 0

    run_virtual(main())


def test_who_leaves_the_middle_of_the_line_waits_no_more() -> None:
    async def main() -> None:
        grants = Grants(FairSemaphore(10))
        for name in ("running", "first", "second"):
            await grants.ask(name, 10)
        await grants.leave("second")
        assert grants.share.waiting == {"": 10}

    run_virtual(main())


def test_who_leaves_in_the_moment_of_its_turn_gives_it_back() -> None:
    async def main() -> None:
        grants = Grants(FairSemaphore(10))
        await grants.ask("running", 10)
        await grants.ask("leaving", 10)
        await grants.ask("next", 10)
        grants.share.release(10)  # "leaving" has it and does not know yet
        await grants.leave("leaving")
        await asyncio.sleep(0)
        assert grants.order == ["running", "next"]
        assert grants.share.in_use == 10

    run_virtual(main())


def test_who_has_just_left_is_passed_over() -> None:
    async def main() -> None:
        grants = Grants(FairSemaphore(10))
        await grants.ask("running", 10)
        await grants.ask("leaving", 10)
        await grants.ask("next", 10)
        grants.tasks["leaving"].cancel()  # it has had no turn of the loop to say so
        await grants.release(10)
        assert grants.order == ["running", "next"]
        assert (grants.share.in_use, grants.share.waiting) == (10, {})

    run_virtual(main())


def test_who_was_let_in_waits_no_more_although_the_next_one_does() -> None:
    async def main() -> None:
        grants = Grants(FairSemaphore(10))
        await grants.ask("running", 10)
        await grants.ask("small", 4, "a")
        await grants.ask("large", 7, "b")
        await grants.release(10)
        assert grants.order == ["running", "small"]
        assert grants.share.waiting == {"b": 7}

    run_virtual(main())


def test_what_a_tenant_asked_for_and_did_not_get_is_not_held_against_it() -> None:
    """Its callers ran out of patience. So it has had nothing, and goes first."""

    async def main() -> None:
        grants = Grants(FairSemaphore(10))
        await grants.ask("running", 10, "b")
        await grants.ask("b 1", 10, "b")
        await grants.ask("b 2", 10, "b")
        for number in range(20):
            await grants.ask(f"a {number}", 10, "a")
            await grants.leave(f"a {number}")
        await grants.ask("a", 10, "a")
        await grants.release(10, "b")
        await grants.release(10, grants.order[-1][0])
        assert sorted(grants.order[1:]) == ["a", "b 1"]

    run_virtual(main())


# --- the line ---------------------------------------------------------------------------------------------------------


async def measured(line: WaitingLine, *, candidates: int = 10, seconds: float = 1.0) -> None:
    """A hundred requests of so many candidates come and leave: now the line knows a rate and a usual size."""
    for _ in range(100):
        await line.take_places(candidates, "measured")
        await asyncio.sleep(seconds)
        line.drained(candidates)
        for _ in range(candidates):
            line.free_place("measured")


async def waiting(line: WaitingLine, requests: int, candidates: int, tenant: str) -> None:
    for _ in range(requests):
        await line.take_places(candidates, tenant)


def predicted(line: WaitingLine, tenant: str) -> float:
    """Seconds of patience, within a tenth, from which on the line lets a request in."""
    for tenths in range(100_000):
        try:
            line.check(tenant, tenths / 10)
        except Overloaded:
            continue
        return tenths / 10
    raise AssertionError("nobody is let in")


def test_nobody_is_refused_before_anything_was_measured() -> None:
    async def main() -> None:
        line = WaitingLine(max_body_bytes=1000, max_queue=1000)
        await waiting(line, 10, 100, "a")
        line.check("a", 0.001)

    run_virtual(main())


def test_a_request_that_would_wait_for_too_long_is_refused_with_the_time_it_takes() -> None:
    async def main() -> None:
        line = WaitingLine(max_body_bytes=1000, max_queue=10_000)
        await measured(line, candidates=10, seconds=1.0)
        await waiting(line, 10, 10, "a")
        wait = 1.25 * 110 / 10  # what waits and itself, at 10 in a second
        line.check("a", wait + 0.1)
        with pytest.raises(Overloaded, match="14 s of work") as refused:
            line.check("a", wait - 5.0)
        assert refused.value.retry_after == pytest.approx(5.0, rel=0.01)
        with pytest.raises(Overloaded) as refused:
            line.check("a", wait - 0.01)
        assert refused.value.retry_after == 1.0

    run_virtual(main())


def test_the_head_of_a_long_line_is_told_to_come_back_within_a_minute() -> None:
    async def main() -> None:
        line = WaitingLine(max_body_bytes=1000, max_queue=100_000)
        await measured(line, candidates=10, seconds=10.0)
        await waiting(line, 100, 100, "a")
        with pytest.raises(Overloaded) as refused:
            line.check("a", 1.0)
        assert refused.value.retry_after == 60.0

    run_virtual(main())


def test_an_empty_line_lets_everybody_in_that_has_time_for_its_own_candidates() -> None:
    async def main() -> None:
        line = WaitingLine(max_body_bytes=1000, max_queue=1000)
        await measured(line, candidates=10, seconds=1.0)
        assert predicted(line, "a") <= 1.3

    run_virtual(main())


def test_idle_devices_refuse_nobody() -> None:
    async def main() -> None:
        line = WaitingLine(max_body_bytes=1000, max_queue=1000)
        await measured(line, candidates=10, seconds=1.0)
        line.check("a", 0.0)

    run_virtual(main())


def test_what_has_a_place_and_what_waits_for_one_count_alike() -> None:
    async def main() -> None:
        line = WaitingLine(max_body_bytes=1000, max_queue=10)
        await measured(line, candidates=10, seconds=1.0)
        await line.take_places(10, "a")
        waits = asyncio.create_task(line.take_places(10, "a"))
        await asyncio.sleep(0)
        assert predicted(line, "a") == pytest.approx(1.25 * 3 * 10 / 10, abs=0.1)
        waits.cancel()
        await asyncio.gather(waits, return_exceptions=True)

    run_virtual(main())


def test_a_body_of_another_tenant_counts_as_well() -> None:
    async def main() -> None:
        line = WaitingLine(max_body_bytes=1000, max_queue=1000)
        await measured(line, candidates=10, seconds=1.0)
        async with line.body(10, "another"):
            assert predicted(line, "a") == pytest.approx(1.25 * 2 * 10 / 10, abs=0.1)

    run_virtual(main())


def test_devices_that_rested_are_not_slow() -> None:
    async def main() -> None:
        line = WaitingLine(max_body_bytes=1000, max_queue=1000)
        await measured(line, candidates=10, seconds=1.0)
        await line.take_places(10, "a")
        await asyncio.sleep(600.0)
        line.woken()
        assert predicted(line, "a") == pytest.approx(1.25 * 2 * 10 / 10, abs=0.1)

    run_virtual(main())


def test_the_backlog_of_others_counts_as_much_as_ones_own_at_most() -> None:
    async def main() -> None:
        line = WaitingLine(max_body_bytes=1000, max_queue=10_000)
        await measured(line, candidates=10, seconds=1.0)
        await waiting(line, 100, 10, "greedy")
        assert predicted(line, "greedy") >= 100
        # As many of the other go first as of its own, and of a third tenant as well.
        beside_one = predicted(line, "small")
        assert beside_one == pytest.approx(1.25 * 2 * 10 / 10, abs=0.3)
        await waiting(line, 100, 10, "another")
        assert predicted(line, "small") == pytest.approx(1.5 * beside_one, abs=0.3)

    run_virtual(main())


def test_bodies_that_are_not_read_count_with_the_usual_number_of_candidates() -> None:
    async def main() -> None:
        line = WaitingLine(max_body_bytes=1000, max_queue=10_000)
        await measured(line, candidates=12, seconds=1.0)

        async def body() -> None:
            async with line.body(1000, "a"):
                await asyncio.Event().wait()

        bodies = [asyncio.create_task(body()) for _ in range(10)]  # one on its way, nine that wait for room
        await asyncio.sleep(0)
        assert line.waiting == 10
        assert predicted(line, "a") == pytest.approx(1.25 * 11 * 12 / 12, rel=0.1)
        for task in bodies:
            task.cancel()
        await asyncio.gather(*bodies, return_exceptions=True)
        assert line.waiting == 0

    run_virtual(main())


def test_callers_who_come_at_the_same_moment_see_each_other() -> None:
    async def main() -> None:
        line = WaitingLine(max_body_bytes=1000, max_queue=1000)
        await measured(line, candidates=10, seconds=1.0)
        admitted = refused = 0

        async def caller() -> None:
            nonlocal admitted, refused
            try:
                line.check("a", 1.25 * 5.5)  # time for five requests
            except Overloaded:
                refused += 1
                return
            admitted += 1
            async with line.body(10, "a") as was_read:
                await asyncio.sleep(0.1)
                was_read()
                await line.take_places(10, "a")

        await asyncio.gather(*(caller() for _ in range(20)))
        assert (admitted, refused) == (5, 15)

    run_virtual(main())


def test_the_first_requests_already_say_how_large_requests_are() -> None:
    async def main() -> None:
        line = WaitingLine(max_body_bytes=1000, max_queue=1000)
        await line.take_places(10, "a")
        await asyncio.sleep(1.0)
        line.drained(10)
        for _ in range(10):
            line.free_place("a")
        async with line.body(10, "a"):
            assert predicted(line, "a") == pytest.approx(1.25 * 2 * 10 / 10, abs=0.1)

    run_virtual(main())


def test_a_slow_upload_to_idle_devices_does_not_make_them_slow() -> None:
    async def main() -> None:
        line = WaitingLine(max_body_bytes=1000, max_queue=1000)
        await measured(line, candidates=10, seconds=1.0)
        async with line.body(10, "a"):
            await asyncio.sleep(60.0)
            line.check("a", 1.25 * 2.1)

    run_virtual(main())


def test_a_body_holds_no_place_among_the_candidates() -> None:
    async def main() -> None:
        line = WaitingLine(max_body_bytes=1000, max_queue=4)
        async with line.body(1000, "slow"):
            await line.take_places(4, "quick")
            assert line.places_taken == 4
        for _ in range(4):
            line.free_place("quick")
        assert line.places_taken == 0

    run_virtual(main())


def test_room_for_bodies_is_given_in_line_and_given_back_whatever_happens() -> None:
    async def main() -> None:
        line = WaitingLine(max_body_bytes=1000, max_queue=4)
        began: list[tuple[str, float]] = []

        async def body(name: str, size: int) -> None:
            async with line.body(size, ""):
                began.append((name, now()))
                await asyncio.sleep(1.0)
                raise ConnectionError

        tasks = [asyncio.create_task(body(name, size)) for name, size in (("a", 600), ("b", 5000), ("c", 300))]
        await asyncio.gather(*tasks, return_exceptions=True)
        assert began == [("a", 0.0), ("b", 1.0), ("c", 2.0)]
        async with line.body(1000, "") as was_read:
            assert line.waiting == 1
            was_read()
            assert line.waiting == 0
        assert line.waiting == 0

    run_virtual(main())


def test_a_place_is_free_when_a_candidate_has_ended() -> None:
    async def main() -> None:
        line = WaitingLine(max_body_bytes=1000, max_queue=4)
        await line.take_places(3, "a")
        second = asyncio.create_task(line.take_places(2, "a"))
        await asyncio.sleep(0)
        assert (line.places_taken, line.waiting) == (3, 2)
        line.free_place("a")
        await second
        assert (line.places_taken, line.waiting) == (4, 0)

    run_virtual(main())


def test_an_idle_hour_is_no_reason_to_refuse() -> None:
    async def main() -> None:
        line = WaitingLine(max_body_bytes=100, max_queue=10)
        await line.take_places(1, "")
        line.drained(1)
        line.free_place("")
        await asyncio.sleep(3600.0)
        line.check("", patience_s=1.0)

    run_virtual(main())
