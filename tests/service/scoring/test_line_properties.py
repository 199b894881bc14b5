"""A share under random callers: never overspent, in order, equal for those who always wait, and nobody stuck."""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from jrm_service.scoring.line import FairSemaphore, WaitingLine
from service.scoring.support import now, run_virtual

TENANTS = ("a", "b", "c")
seeds = st.integers(0, 2**32 - 1)


class Callers:
    """Callers who come, hold for a while and leave at any moment, and what was granted to whom."""

    def __init__(self, random: Random, total: int) -> None:
        self.random = random
        self.share = FairSemaphore(total)
        self.held: Counter[str] = Counter()
        self.asked: dict[str, list[int]] = {tenant: [] for tenant in TENANTS}
        self.granted: dict[int, float] = {}  # when, by number
        self.left: set[int] = set()

    async def play(self, callers: int) -> None:
        tasks = []
        for number in range(callers):
            tasks.append(asyncio.create_task(self.call(number, self.random.choice(TENANTS))))
            for _ in range(self.random.choice([0, 0, 0, 1, 2])):
                await asyncio.sleep(self.random.choice([0, 0, 0.5, 1.0]))
            if self.random.random() < 0.3:
                leaving = self.random.randrange(len(tasks))
                if not tasks[leaving].done():
                    self.left.add(leaving)
                    tasks[leaving].cancel()
            self.check()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert result is None or isinstance(result, asyncio.CancelledError), result
        self.check()

    async def call(self, number: int, tenant: str) -> None:
        amount = self.random.randint(1, self.share.total + 3)
        self.asked[tenant].append(number)
        held = await self.share.acquire(amount, tenant)
        assert held == min(amount, self.share.total)
        self.granted[number] = now()
        self.held[tenant] += held
        self.check()
        try:
            await asyncio.sleep(self.random.choice([0.0, 1.0, 3.0]))
        finally:
            self.held[tenant] -= held
            part = self.random.randint(0, held)
            for amount in (part, held - part):
                self.share.release(amount, tenant)

    def check(self) -> None:
        assert self.held.total() <= self.share.in_use <= self.share.total
        assert all(amount > 0 for amount in (*self.share.held.values(), *self.share.waiting.values()))


@given(seed=seeds, total=st.integers(1, 12))
@settings(max_examples=200, deadline=None)
def test_everybody_who_waits_is_let_in_in_order_and_nothing_is_lost(seed: int, total: int) -> None:
    async def main() -> None:
        callers = Callers(Random(seed), total)
        await callers.play(40)
        for tenant in TENANTS:
            stayed = [number for number in callers.asked[tenant] if number not in callers.left]
            granted = [callers.granted[number] for number in stayed]
            assert granted == sorted(granted)
        share = callers.share
        assert (share.in_use, dict(share.held), dict(share.waiting)) == (0, {}, {})
        assert (share._lines, share._had) == ({}, {})
        assert await share.acquire(total) == total

    run_virtual(main())


@given(seed=seeds, total=st.integers(5, 20), leave=st.booleans())
@settings(max_examples=100, deadline=None)
def test_two_who_always_wait_get_equal_amounts(seed: int, total: int, leave: bool) -> None:
    """They differ by one request of each at most, whatever they ask for; with some callers who lose patience, too."""
    random = Random(seed)
    most = {"a": random.randint(1, total), "b": random.randint(1, total)}

    async def main() -> None:
        share = FairSemaphore(total)
        granted: Counter[str] = Counter()
        differences: list[int] = []
        await share.acquire(total, "c")

        async def call(tenant: str) -> None:
            """Ask again and again, so that with enough callers there is always one that waits."""
            while granted.total() < 30 * total:
                amount = random.randint(1, most[tenant])
                try:
                    async with asyncio.timeout(random.choice([0.5, 5.0, None]) if leave else None):
                        held = await share.acquire(amount, tenant)
                except TimeoutError:
                    continue
                granted[tenant] += held
                if granted.total() < 30 * total:  # from then on they leave, one after the other
                    differences.append(abs(granted["a"] - granted["b"]))
                await asyncio.sleep(random.choice([0.1, 1.0]))
                share.release(held, tenant)

        callers = [asyncio.create_task(call(tenant)) for tenant in ("a", "b") for _ in range(2 * total + 2)]
        await asyncio.sleep(0)
        share.release(total, "c")
        await asyncio.gather(*callers)
        assert max(differences) <= sum(most.values())

    run_virtual(main())


@given(seed=seeds)
@settings(max_examples=50, deadline=None)
def test_a_large_request_is_not_starved_by_a_stream_of_small_ones(seed: int) -> None:
    random = Random(seed)

    async def main() -> None:
        share = FairSemaphore(10)

        async def small() -> None:
            while True:
                held = await share.acquire(random.randint(1, 3), "small")
                await asyncio.sleep(random.choice([0.5, 1.0, 2.0]))
                share.release(held, "small")

        stream = [asyncio.create_task(small()) for _ in range(20)]
        await asyncio.sleep(5.0)
        assert await asyncio.wait_for(share.acquire(10, "large"), 30.0) == 10
        for task in stream:
            task.cancel()

    run_virtual(main())


@given(seed=seeds, bodies=st.integers(1, 30), queue=st.integers(1, 12))
@settings(max_examples=100, deadline=None)
def test_requests_that_hold_their_bodies_while_they_wait_for_places_never_block_each_other(
    seed: int, bodies: int, queue: int
) -> None:
    random = Random(seed)

    async def main() -> None:
        line = WaitingLine(max_body_bytes=bodies, max_queue=queue)
        done: list[int] = []

        async def request(number: int) -> None:
            tenant, candidates = random.choice(TENANTS), random.randint(1, queue)
            async with line.body(random.randint(1, bodies + 2), tenant):
                await asyncio.sleep(random.choice([0.0, 1.0, 10.0]))
                await line.take_places(candidates, tenant)
                for _ in range(candidates):
                    await asyncio.sleep(random.choice([0.0, 1.0]))
                    line.free_place(tenant)
            done.append(number)

        await asyncio.wait_for(asyncio.gather(*map(request, range(30))), 30 * 30.0)
        assert sorted(done) == list(range(30))
        assert (line.places_taken, line.waiting) == (0, 0)

    run_virtual(main())
