"""The retry loop: replicas are asked one after another until one of them gives a final answer."""

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
    """What the loop needs of a fleet."""

    replicas: Replicas

    async def refresh(self, *, failing: bool = False) -> None:
        """Update the list of replicas; ``failing``: one of them has just failed."""
        ...


async def until_answered(
    fleet: Replicated, ask: Callable[[str], Awaitable[T]], schedule: Schedule, deadline: Deadline
) -> T:
    """Return the first answer of ``ask(replica)``. Raises the last failure when another attempt cannot help.

    It does so at once when the next attempt would begin after the deadline.
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
    """Send a request to a replica within the block, and record in ``replicas`` how it went.

    A replica that let a call run out of time is first asked for a sign of life, with ``greet``. Raises
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
        raise APIConnectionError(f"{name} accepts requests but never answers") from None
