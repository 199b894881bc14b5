"""The one retry loop: one replica is asked after another, until one of them answers for good."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol, TypeVar

from .deadline import Deadline
from .errors import APIConnectionError, JRMError
from .replicas import Replicas
from .retry import GREETING_TIMEOUT, Schedule, ejects, retryable

T = TypeVar("T")


class Replicated(Protocol):
    """What the loop asks of a fleet."""

    replicas: Replicas

    async def refresh(self, *, failing: bool = False) -> None:
        """Find the replicas that there are now; one may be ``failing``."""
        ...


async def until_answered(
    fleet: Replicated, ask: Callable[[str], Awaitable[T]], schedule: Schedule, deadline: Deadline
) -> T:
    """Return the first answer of ``ask(replica)``. Raises the last failure when another attempt is of no use.

    So it does at once when the next attempt would begin past the deadline.
    """
    loop = asyncio.get_running_loop()

    def choose() -> tuple[str, float]:
        return fleet.replicas.choose(loop.time(), schedule.ready, schedule.only, schedule.elsewhere)

    await fleet.refresh()
    while True:
        replica, wait = choose()
        if wait:
            await asyncio.sleep(wait)
            continue
        try:
            return await ask(replica)
        except JRMError as failure:
            if not retryable(failure) and not (ejects(failure) and len(fleet.replicas) > 1):
                raise
            deadline.failure = failure
            schedule.failed(replica, loop.time(), failure)
            await fleet.refresh(failing=ejects(failure))
            _, wait = choose()
            if schedule.exhausted(len(fleet.replicas)) or wait >= deadline.remaining():
                raise


@contextlib.asynccontextmanager
async def recorded(
    replicas: Replicas, name: str, greet: Callable[[], Awaitable[object]], deadline: Deadline
) -> AsyncIterator[None]:
    """Ask a replica within the block, and tell ``replicas`` how that went.

    A replica that let a call run out of time is asked for a sign of life before, with ``greet``. Raises
    APIConnectionError when none comes within GREETING_TIMEOUT seconds, and what ``greet`` raises.
    """
    loop = asyncio.get_running_loop()
    attempt = replicas.start(name, loop.time())
    try:
        if attempt.doubtful:
            await _greeted(name, greet)
        yield
    except JRMError as failure:
        if ejects(failure):
            replicas.failed(attempt, loop.time(), getattr(failure, "retry_after", None))
        else:
            replicas.answered(attempt)
        raise
    except BaseException:
        if deadline.remaining() <= 0:
            replicas.silent(attempt, loop.time())
        else:
            replicas.abandoned(attempt)
        raise
    replicas.answered(attempt)


async def _greeted(name: str, greet: Callable[[], Awaitable[object]]) -> None:
    try:
        async with asyncio.timeout(GREETING_TIMEOUT):
            await greet()
    except TimeoutError:
        raise APIConnectionError(f"{name} accepts requests and answers none") from None
