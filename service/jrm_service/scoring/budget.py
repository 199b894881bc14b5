"""A budget of bytes that work in flight may hold."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class ByteBudget:
    """Hands out bytes first come, first served; waits while they are spent. Use from one event loop.

    A claim above the whole budget is granted when nothing else is in flight: it must be slow, not stuck.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._spent = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def hold(self, amount: int) -> AsyncIterator[None]:
        """Hold ``amount`` bytes (at most the whole budget) for the length of the block."""
        amount = min(amount, self._total)
        if self._waiting or self._spent + amount > self._total:
            turn = asyncio.get_running_loop().create_future()
            entry = (amount, turn)
            self._waiting.append(entry)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._release(amount)  # granted and cancelled in the same tick
                else:
                    with suppress(ValueError):  # already passed over by `_grant`
                        self._waiting.remove(entry)
                    self._grant()
                raise
        else:
            self._spent += amount
        try:
            yield
        finally:
            self._release(amount)

    def _release(self, amount: int) -> None:
        self._spent -= amount
        self._grant()

    def _grant(self) -> None:
        while self._waiting and self._spent + self._waiting[0][0] <= self._total:
            amount, turn = self._waiting.popleft()
            if not turn.done():
                self._spent += amount
                turn.set_result(None)
