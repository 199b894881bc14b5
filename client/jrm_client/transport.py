"""HTTP to one or several servers: connection pools, the key, the deadline, and the one retry loop."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal, TypeVar
from weakref import WeakKeyDictionary

import httpx

from .errors import APIConnectionError, APIResponseError, APITimeoutError, JRMError
from .protocol import MAX_TIMEOUT_MS
from .retry import Backoff, Schedule, retryable
from .wire import Reply

T = TypeVar("T")
Body = dict[str, Any]

# Calls have a deadline of their own. A host that swallows packets must not use it up before the next server is asked.
_TIMEOUT = httpx.Timeout(None, connect=5.0)
# uvicorn closes an idle connection after 5 s; giving it up earlier avoids sending into a closing one.
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=32, keepalive_expiry=4.0)
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
    """Sends requests to ``urls``, taking turns. Usable from any event loop: each has connections of its own."""

    def __init__(self, urls: tuple[str, ...], api_key: str | None, max_retries: int, backoff: Backoff) -> None:
        self.urls = urls
        self._headers = {"user-agent": f"jrm-client/{version('jrm-serve')}"}
        if api_key is not None:
            self._headers["authorization"] = f"Bearer {api_key}"
        self._max_retries = max_retries
        self._backoff = backoff
        # Ranks start at the same moment: a random first server keeps them from all asking the same one.
        self._turn = itertools.count(random.randrange(len(urls)))  # noqa: S311 - no secret
        self._pools: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = WeakKeyDictionary()

    async def call(
        self,
        method: Literal["GET", "POST"],
        path: str,
        body: Callable[[int], Body],
        read: Callable[[Reply], T],
        deadline: Deadline,
    ) -> T:
        """Send until a server answers for good, and return ``read(reply)``.

        ``body(timeout_ms)`` gives httpx's body arguments for an attempt. What ``read`` raises is retried if ``retry``
        says so. When the next attempt would begin past the deadline, the failure so far is raised at once.
        """
        turn = next(self._turn) % len(self.urls)
        schedule = Schedule(self.urls[turn:] + self.urls[:turn], self._max_retries, self._backoff)
        loop = asyncio.get_running_loop()
        request_id = uuid.uuid4().hex
        attempt = schedule.next(loop.time())
        while True:
            url, wait = attempt
            if wait:
                await asyncio.sleep(wait)
            try:
                return read(await self._send(method, url + path, body(deadline.remaining_ms()), request_id))
            except JRMError as failure:
                if not retryable(failure):
                    raise
                deadline.failure = failure
                schedule.failed(url, loop.time(), failure)
                attempt = schedule.next(loop.time())
                if schedule.exhausted or attempt[1] >= deadline.remaining():
                    raise

    async def close(self) -> None:
        """Close the connections of the running loop."""
        pool = self._pools.pop(asyncio.get_running_loop(), None)
        if pool is not None:
            await pool.aclose()

    def _pool(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        pool = self._pools.get(loop)
        if pool is None:
            pool = self._pools[loop] = httpx.AsyncClient(timeout=_TIMEOUT, limits=_LIMITS, headers=self._headers)
        return pool

    async def _send(self, method: str, url: str, body: Body, request_id: str) -> Reply:
        try:
            response = await self._pool().request(method, url, headers={"x-request-id": request_id}, **body)
        except httpx.TransportError as error:
            reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            message = f"no reply from {url} ({reason}); is the server running and reachable?"
            raise APIConnectionError(message, request_id=request_id) from error
        except httpx.DecodingError as error:
            raise APIResponseError(f"the reply of {url} cannot be decoded: {error}", request_id=request_id) from error
        answered = response.headers.get("x-request-id", request_id)
        return Reply(response.status_code, response.headers, response.content, answered)
