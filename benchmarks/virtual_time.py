"""An event loop on a clock of its own: waiting takes no time, and how long something waited is exact."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_GRACE_S = 0.01  # real: what the loopback device may need to deliver what this process sent to itself


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """``time()`` stands still while there is anything to do, then jumps to the next timer."""

    def __init__(self, grace_s: float = _GRACE_S) -> None:
        super().__init__(_Selector(self, grace_s))
        self.now = 0.0

    def time(self) -> float:
        """Seconds of this clock."""
        return self.now


class _Selector(selectors.DefaultSelector):
    def __init__(self, loop: VirtualTimeLoop, grace_s: float) -> None:
        super().__init__()
        self._loop = loop
        self._grace_s = grace_s

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            return super().select()
        events = super().select(min(timeout, self._grace_s))
        if not events:
            self._loop.now += max(0.0, timeout)
        return events


def run(main: Coroutine[Any, Any, T], *, grace_s: float = _GRACE_S) -> T:
    """Run a coroutine to its end. It must not depend on other threads or processes: nobody waits for them.

    ``grace_s`` may be 0 when nothing is sent over sockets.
    """
    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(grace_s)) as runner:
        return runner.run(main)
