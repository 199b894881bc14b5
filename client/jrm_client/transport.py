"""HTTP to one or several replicas: headers, attempts, and httpx's errors as ours."""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from importlib.metadata import version
from typing import Any, Literal, TypeVar

import httpx

from . import sse, tls
from .addresses import Resolve, Target, resolve
from .attempts import recorded, until_answered
from .deadline import Deadline
from .errors import APIConnectionError, APIResponseError, JRMError
from .fleet import Fleet
from .protocol import TIMEOUT_HEADER
from .proxies import proxy_of
from .replicas import EJECTION, first_turn
from .retry import Backoff, Schedule, retryable
from .wire import Reply

T = TypeVar("T")
Body = dict[str, Any]
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)
_REMEDY = "is the server running and reachable?"
_PROXY_REMEDY = "are the proxy and the server running and reachable? NO_PROXY names servers that need no proxy"


@dataclass(frozen=True, slots=True)
class StreamedReply:
    """A reply whose body is still arriving, as ``chunks``; that of a refusal (not a 200) is in ``head`` already."""

    head: Reply
    chunks: AsyncIterator[bytes]


class Transport:
    """Sends requests to a fleet. Usable from any event loop: each has connections, and a view of the fleet, of its own.

    ``urls`` are the base URLs; ``replicas`` says which of them, or of their addresses, gets a request. ``carrier``: an
    httpx transport that carries the requests instead of network connections, from any event loop.
    Raises ValueError for a proxy or certificates from the environment that are needed and cannot be used.
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
        carrier: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.urls = urls
        self._carrier = carrier
        self._routes = {url: proxy_of(url) if carrier is None else None for url in urls}
        dialled = [*urls, *(proxy.url for proxy in self._routes.values() if proxy)]
        self._tls = tls.context(needed=any(url.lower().startswith("https") for url in dialled))
        self._headers = {"user-agent": f"jrm-client/{version('jrm-serve')}"}
        if api_key is not None:
            self._headers["authorization"] = f"Bearer {api_key}"
        self._max_retries = max_retries
        self._backoff = backoff
        self._ejection = ejection
        self._resolve = resolve
        self._turn = first_turn(os.environ)
        self._fleets: dict[asyncio.AbstractEventLoop, Fleet] = {}

    async def call(
        self,
        method: Literal["GET", "POST"],
        path: str,
        body: Callable[[int], Body],
        read: Callable[[Reply], T],
        deadline: Deadline,
    ) -> T:
        """Send until a replica gives a final answer, and return ``read(reply)``.

        ``body(timeout_ms)`` returns httpx's body arguments for an attempt. What ``read`` raises is retried if ``retry``
        says so. When the next attempt would begin after the deadline, the last failure is raised at once.
        """
        fleet = await self._fleet()
        request_id = uuid.uuid4().hex

        async def ask(replica: str) -> T:
            left = deadline.remaining_ms()
            headers = {"x-request-id": request_id}
            if method == "POST":
                headers[TIMEOUT_HEADER] = str(left)
            async with recorded(fleet.replicas, replica, partial(_greet, fleet, replica), deadline):
                return read(await _send(fleet, replica, method, path, body(left), headers))

        return await until_answered(fleet, ask, self._schedule(), deadline)

    @contextlib.asynccontextmanager
    async def stream(
        self,
        path: str,
        body: Callable[[int], Body],
        begin: Callable[[StreamedReply], Awaitable[T]],
        deadline: Deadline,
    ) -> AsyncIterator[T]:
        """POST until a replica's reply begins well, and yield what ``begin(reply)`` returns; the block reads the rest.

        ``begin`` is retried as ``call`` retries ``read``; later failures are not. The connection closes with the block.
        A connection that breaks inside the block raises APIConnectionError there. The deadline ends at the block.
        """
        fleet = await self._fleet()
        request_id = uuid.uuid4().hex
        async with contextlib.AsyncExitStack() as block:

            async def ask(replica: str) -> T:
                async with contextlib.AsyncExitStack() as attempt:
                    greet = partial(_greet, fleet, replica)
                    await attempt.enter_async_context(recorded(fleet.replicas, replica, greet, deadline))
                    left = deadline.remaining_ms()
                    sent = _open(fleet, replica, path, body(left), request_id, left)
                    begun = await begin(await attempt.enter_async_context(sent))
                    # From here the attempt lasts as long as the block, and so counts as outstanding.
                    await block.enter_async_context(attempt.pop_all())
                return begun

            yield await until_answered(fleet, ask, self._schedule(), deadline)

    async def call_each(
        self,
        path: str,
        body: Body,
        read: Callable[[Reply], T],
        deadline: Deadline,
        *,
        attempts: int | None = None,
    ) -> list[T]:
        """POST to every replica, and return all answers; failures are retried at the same replica.

        ``attempts`` limits the attempts in place of ``max_retries``. The first failure is raised once every replica has
        answered, with the outcomes of the others as notes: a replica does what it was sent, even if nobody waits.
        """
        fleet = await self._fleet()
        await fleet.refresh()
        loop, request_id = asyncio.get_running_loop(), uuid.uuid4().hex
        retries = self._max_retries if attempts is None else attempts - 1

        async def ask(replica: str) -> T:
            schedule = Schedule(retries, self._backoff)
            while True:
                try:
                    return read(await _send(fleet, replica, "POST", path, body, {"x-request-id": request_id}))
                except JRMError as failure:
                    deadline.failure = failure
                    schedule.failed(replica, loop.time(), failure)
                    wait = schedule.ready[replica] - loop.time()
                    if not retryable(failure) or schedule.exhausted(1) or wait >= deadline.remaining():
                        raise
                    await asyncio.sleep(max(0.0, wait))

        names = fleet.replicas.names
        results = await asyncio.gather(*(ask(replica) for replica in names), return_exceptions=True)
        failures = [result for result in results if isinstance(result, BaseException)]
        if failures:
            for replica, result in zip(names, results, strict=True):
                if result is not failures[0]:
                    failures[0].add_note(f"{replica}: {result if isinstance(result, BaseException) else 'done'}")
            raise failures[0]
        return [result for result in results if not isinstance(result, BaseException)]

    async def replicas(self) -> int:
        """Return how many replicas there are, after looking up the names whose addresses are due."""
        fleet = await self._fleet()
        await fleet.refresh()
        return len(fleet.replicas)

    async def close(self) -> None:
        """Close the connections of the running loop."""
        fleet = self._fleets.pop(asyncio.get_running_loop(), None)
        if fleet is not None:
            await fleet.close()

    def _schedule(self) -> Schedule:
        return Schedule(self._max_retries, self._backoff)

    async def _fleet(self) -> Fleet:
        loop = asyncio.get_running_loop()
        for known_loop in list(self._fleets):
            if known_loop.is_closed() and (abandoned := self._fleets.pop(known_loop, None)):
                abandoned.abandon()
        fleet = self._fleets.get(loop)
        if fleet is None:
            fleet = self._fleets[loop] = Fleet(
                self._routes,
                self._tls,
                self._headers,
                self._turn,
                self._resolve,
                self._ejection,
                carrier=self._carrier,
            )
        await fleet.open()
        return fleet


async def _greet(fleet: Fleet, replica: str) -> None:
    """Ask for a sign of life: any reply will do."""
    await _send(fleet, replica, "GET", "/health/live", {}, {"x-request-id": uuid.uuid4().hex})


async def _send(
    fleet: Fleet, replica: str, method: Literal["GET", "POST"], path: str, body: Body, headers: Mapping[str, str]
) -> Reply:
    target, request_id = fleet.target(replica), headers["x-request-id"]
    with _failures(target, path, request_id):
        response = await fleet.send(method, target, path, headers, body)
    return _reply(response, target, path, request_id, response.content)


@contextlib.asynccontextmanager
async def _open(
    fleet: Fleet, replica: str, path: str, body: Body, request_id: str, timeout_ms: int
) -> AsyncIterator[StreamedReply]:
    target = fleet.target(replica)
    # Not compressed: a proxy that compresses collects events until a block of them is full.
    headers = {
        "x-request-id": request_id,
        TIMEOUT_HEADER: str(timeout_ms),
        "accept": sse.CONTENT_TYPE,
        "accept-encoding": "identity",
    }
    with _failures(target, path, request_id):
        async with fleet.stream("POST", target, path, headers, body) as response:
            whole = b"" if response.status_code == HTTPStatus.OK else await response.aread()
            with _failures(target, path, request_id, begun=True):
                yield StreamedReply(_reply(response, target, path, request_id, whole), response.aiter_bytes())


def _reply(response: httpx.Response, target: Target, path: str, request_id: str, body: bytes) -> Reply:
    answered = response.headers.get("x-request-id", request_id)
    asked = target.name_of(path) + target.via
    return Reply(response.status_code, response.headers, body, answered, target.name, asked)


@contextlib.contextmanager
def _failures(target: Target, path: str, request_id: str, *, begun: bool = False) -> Iterator[None]:
    """Raise what httpx raises as an error of ours; ``begun``: part of the reply has arrived."""
    try:
        yield
    except httpx.TransportError as error:
        asked = target.name_of(path) + target.via
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        message = (
            f"the reply of {asked} broke off ({reason})"
            if begun
            else f"no reply from {asked} ({reason}); {_REMEDY if target.proxy is None else _PROXY_REMEDY}"
        )
        raise APIConnectionError(message, request_id=request_id, sent=not isinstance(error, _NOT_SENT)) from error
    except httpx.DecodingError as error:
        message = f"the reply of {target.name_of(path)}{target.via} cannot be decoded: {error}"
        raise APIResponseError(message, request_id=request_id) from error
