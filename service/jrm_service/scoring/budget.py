"""A budget of bytes that work in flight may hold."""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from typing import Any


class ByteBudget:
    """Hands out bytes first come, first served; waits while they are spent. Use from one event loop.

    A claim above the whole budget is granted when nothing else is in flight: it must be slow, not stuck.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self.spent = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def acquire(self, amount: int) -> int:
        """Wait for ``amount`` bytes, or for the whole budget if that is less; returns what is to be released."""
        amount = min(amount, self._total)
        if not self._waiting and self.spent + amount <= self._total:
            self.spent += amount
            return amount
        turn = asyncio.get_running_loop().create_future()
        entry = (amount, turn)
        self._waiting.append(entry)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release(amount)  # granted and cancelled in the same tick
            else:
                with suppress(ValueError):  # already passed over by `_grant`
                    self._waiting.remove(entry)
                self._grant()
            raise
        return amount

    def release_after(self, work: Future[Any], amount: int) -> None:
        """Give back ``amount`` when a thread is done with it, which may be long after a caller who left."""
        loop = asyncio.get_running_loop()

        def done(_work: Future[Any]) -> None:
            with suppress(RuntimeError):  # the loop has ended, and with it the budget
                loop.call_soon_threadsafe(self.release, amount)

        work.add_done_callback(done)

    def release(self, amount: int) -> None:
        """Give back what ``acquire`` returned."""
        self.spent -= amount
        self._grant()

    def _grant(self) -> None:
        while self._waiting and self.spent + self._waiting[0][0] <= self._total:
            amount, turn = self._waiting.popleft()
            if not turn.done():
                self.spent += amount
                turn.set_result(None)
