"""One deadline for a whole call: what is left of it, and what to say when it has passed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from .errors import APITimeoutError, JRMError
from .protocol import MAX_TIMEOUT_MS

# Seconds, and a share, by which the server gets less time than we have: its reply then arrives before we give up.
_MARGIN, _MARGIN_SHARE = 0.25, 0.05


@dataclass(slots=True)
class Deadline:
    """When a call of ``seconds`` must be over (``at``, in the loop's time), and what has gone wrong in it so far."""

    seconds: float
    at: float
    failure: JRMError | None = None

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """Return the deadline of a call that begins now."""
        return cls(seconds, asyncio.get_running_loop().time() + seconds)

    def remaining(self) -> float:
        """Seconds left; negative when it has passed."""
        return self.at - asyncio.get_running_loop().time()

    def remaining_ms(self) -> int:
        """Milliseconds that the server gets, as the contract's ``timeout_ms``."""
        left = min(self.remaining(), MAX_TIMEOUT_MS)  # far above the contract's limit; only keeps the product finite
        return max(1, min(MAX_TIMEOUT_MS, int(1000 * (left - min(_MARGIN, _MARGIN_SHARE * left)))))

    @contextlib.asynccontextmanager
    async def bound(self) -> AsyncIterator[None]:
        """Bound everything inside; raises APITimeoutError with the last failure as its cause.

        A generator must not yield inside: its caller's own work would be cancelled.
        """
        try:
            async with asyncio.timeout_at(self.at) as scope:
                yield
        except TimeoutError:
            if not scope.expired():
                raise
            failure = self.failure
            message = f"no complete reply within timeout={self.seconds:g} s"
            message += f"; the last attempt failed: {failure}" if failure else "; raise timeout, or lower the load"
            raise APITimeoutError(message, request_id=failure.request_id if failure else None) from failure


@contextlib.asynccontextmanager
async def deadline_of(seconds: float) -> AsyncIterator[Deadline]:
    """Bound everything inside by ``seconds``; raises as ``Deadline.bound``."""
    deadline = Deadline.after(seconds)
    async with deadline.bound():
        yield deadline
