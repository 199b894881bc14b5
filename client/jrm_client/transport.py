"""HTTP to one or several replicas: the key, the deadline, and the one retry loop."""

from __future__ import annotations

import asyncio
import contextlib
import random
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal, TypeVar
from weakref import WeakKeyDictionary

import httpx

from .addresses import Resolve, resolve
from .errors import APIConnectionError, APIResponseError, APITimeoutError, JRMError
from .fleet import Fleet
from .protocol import MAX_TIMEOUT_MS
from .replicas import EJECTION, Replicas
from .retry import Backoff, Schedule, ejects, retryable
from .wire import Reply

T = TypeVar("T")
Body = dict[str, Any]

# What the server is told to need less than we have, so that its verdict on each candidate arrives before we give up.
_MARGIN, _MARGIN_SHARE = 0.25, 0.05


@dataclass(slots=True)
class Deadline:
    """When a call must be over (in the loop's time), and what has gone wrong in it so far."""

    at: float
    failure: JRMError | None = None

    def remaining(self) -> float:
        """Seconds left; negative when it has passed."""
        return self.at - asyncio.get_running_loop().time()

    def remaining_ms(self) -> int:
        """Milliseconds that the server gets, as the contract's ``timeout_ms``."""
        left = self.remaining()
        return max(1, min(MAX_TIMEOUT_MS, int(1000 * (left - min(_MARGIN, _MARGIN_SHARE * left)))))


@contextlib.asynccontextmanager
async def deadline_of(seconds: float) -> AsyncIterator[Deadline]:
    """Bound everything inside by ``seconds``; raises APITimeoutError with the last failure as its cause."""
    deadline = Deadline(asyncio.get_running_loop().time() + seconds)
    try:
        async with asyncio.timeout_at(deadline.at) as scope:
            yield deadline
    except TimeoutError:
        if not scope.expired():
            raise
        failure = deadline.failure
        message = f"no complete reply within timeout={seconds:g} s"
        message += f"; the last attempt failed: {failure}" if failure else "; raise timeout, or lower the load"
        raise APITimeoutError(message, request_id=failure.request_id if failure else None) from failure


class Transport:
    """Sends requests to a fleet. Usable from any event loop: each has connections, and a view of the fleet, of its own.

    ``urls`` are the base URLs; ``replicas`` says which of them, and of their addresses, gets a request.
    """

    def __init__(
        self,
        urls: tuple[str, ...],
        api_key: str | None,
        max_retries: int,
        backoff: Backoff,
        *,
        ejection: Backoff = EJECTION,
        resolve: Resolve = resolve,
    ) -> None:
        self.urls = urls
        self._headers = {"user-agent": f"jrm-client/{version('jrm-serve')}"}
        if api_key is not None:
            self._headers["authorization"] = f"Bearer {api_key}"
        self._max_retries = max_retries
        self._backoff = backoff
        self._ejection = ejection
        self._resolve = resolve
        self._turn = random.randrange(2**16)  # noqa: S311 - no secret
        self._fleets: WeakKeyDictionary[asyncio.AbstractEventLoop, Fleet] = WeakKeyDictionary()

    async def call(
        self,
        method: Literal["GET", "POST"],
        path: str,
        body: Callable[[int], Body],
        read: Callable[[Reply], T],
        deadline: Deadline,
        headers: Mapping[str, str] | None = None,
    ) -> T:
        """Send until a replica answers for good, and return ``read(reply)``.

        ``body(timeout_ms)`` gives httpx's body arguments for an attempt. What ``read`` raises is retried if ``retry``
        says so. When the next attempt would begin past the deadline, the failure so far is raised at once.
        """
        fleet = self._fleet()
        schedule = Schedule(self._max_retries, self._backoff)
        loop = asyncio.get_running_loop()
        # One id for all attempts: a server that refused this request knows it when it comes back.
        sent = {**(headers or {}), "x-request-id": uuid.uuid4().hex}

        async def ask(replica: str) -> T:
            return read(await _send(fleet, replica, method, path, body(deadline.remaining_ms()), sent))

        await fleet.refresh()
        while True:
            replica, wait = fleet.replicas.choose(loop.time(), schedule.ready)
            if wait:
                await asyncio.sleep(wait)
                continue
            try:
                return await _recorded(fleet.replicas, replica, ask(replica))
            except JRMError as failure:
                if not retryable(failure) and not (ejects(failure) and len(fleet.replicas) > 1):
                    raise
                deadline.failure = failure
                schedule.failed(replica, loop.time(), failure)
                await fleet.refresh(failing=ejects(failure))
                _, wait = fleet.replicas.choose(loop.time(), schedule.ready)
                if schedule.exhausted(len(fleet.replicas)) or wait >= deadline.remaining():
                    raise

    async def replicas(self) -> int:
        """Return how many replicas there are, after looking up the names whose addresses are due."""
        fleet = self._fleet()
        await fleet.refresh()
        return len(fleet.replicas)

    async def close(self) -> None:
        """Close the connections of the running loop."""
        fleet = self._fleets.pop(asyncio.get_running_loop(), None)
        if fleet is not None:
            await fleet.close()

    def _fleet(self) -> Fleet:
        loop = asyncio.get_running_loop()
        fleet = self._fleets.get(loop)
        if fleet is None:
            fleet = self._fleets[loop] = Fleet(self.urls, self._headers, self._turn, self._resolve, self._ejection)
        return fleet


async def _recorded(replicas: Replicas, name: str, reply: Coroutine[Any, Any, T]) -> T:
    """Await the reply of a replica, and tell ``replicas`` how that went."""
    loop = asyncio.get_running_loop()
    attempt = replicas.start(name, loop.time())
    try:
        result = await reply
    except JRMError as failure:
        if ejects(failure):
            replicas.failed(attempt, loop.time(), getattr(failure, "retry_after", None))
        else:
            replicas.answered(attempt)
        raise
    except BaseException:
        replicas.abandoned(attempt)
        raise
    replicas.answered(attempt)
    return result


async def _send(
    fleet: Fleet, replica: str, method: Literal["GET", "POST"], path: str, body: Body, headers: Mapping[str, str]
) -> Reply:
    target, request_id = fleet.target(replica), headers["x-request-id"]
    try:
        response = await fleet.send(method, target, path, headers, body)
    except httpx.TransportError as error:
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        message = f"no reply from {target.name_of(path)} ({reason}); is the server running and reachable?"
        raise APIConnectionError(message, request_id=request_id) from error
    except httpx.DecodingError as error:
        message = f"the reply of {target.name_of(path)} cannot be decoded: {error}"
        raise APIResponseError(message, request_id=request_id) from error
    answered = response.headers.get("x-request-id", request_id)
    return Reply(response.status_code, response.headers, response.content, answered, target.name)
