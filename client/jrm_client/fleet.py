"""The replicas of a client as they are now, and the connections to them. Belongs to one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal

import httpx

from . import addresses
from .addresses import Resolve, Target
from .replicas import EJECTION, Replicas
from .retry import CONNECT_TIMEOUT, RESOLVE_EVERY, RESOLVE_FAILING, RESOLVE_TIMEOUT, Backoff

# Calls have a deadline of their own; only a connection that is never made ends earlier.
_TIMEOUT = httpx.Timeout(None, connect=CONNECT_TIMEOUT)
# uvicorn closes an idle connection after 5 s; giving it up earlier avoids sending into a closing one.
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=32, keepalive_expiry=4.0)


class Fleet:
    """Every URL is a replica, and so is every address of a name that has several.

    ``turn`` rotates them: ranks start at the same moment, and must not all ask the same replica first. ``replicas``
    knows which one is next, ``ejection`` for how long one that failed is left alone. Names are
    looked up again after ``look_up_every`` seconds.
    """

    def __init__(
        self,
        urls: Sequence[str],
        headers: Mapping[str, str],
        turn: int,
        resolve: Resolve = addresses.resolve,
        ejection: Backoff = EJECTION,
        look_up_every: float = RESOLVE_EVERY,
    ) -> None:
        self._headers = headers
        self._turn = turn
        self._resolve = resolve
        self._look_up_every = look_up_every
        self._found = {url: [Target(url)] for url in urls}
        self._names = [url for url in urls if addresses.is_name(url)]
        self._looking: asyncio.Task[None] | None = None
        self._looked_at: float | None = None
        self._targets: dict[str, Target] = {}
        self._clients: dict[bool, httpx.AsyncClient] = {}
        self.replicas = Replicas(urls, ejection)
        self._list()

    def target(self, name: str) -> Target:
        """Return the replica that ``replicas`` calls ``name``."""
        return self._targets[name]

    async def refresh(self, *, failing: bool = False) -> None:
        """Look up the names when it is time, which is sooner while a replica is ``failing``: it may have moved.

        The first look is awaited, later ones go on beside the requests.
        """
        if not self._names:
            return
        loop = asyncio.get_running_loop()
        wait = min(self._look_up_every, RESOLVE_FAILING) if failing else self._look_up_every
        if self._looking is None and (self._looked_at is None or loop.time() >= self._looked_at + wait):
            self._looking = loop.create_task(self._look())
        if self._looked_at is None and self._looking is not None:
            await asyncio.shield(self._looking)

    async def _look(self) -> None:
        try:
            await asyncio.gather(*map(self._look_up, self._names))
            self._list()
        finally:
            self._looked_at = asyncio.get_running_loop().time()
            self._looking = None

    async def _look_up(self, url: str) -> None:
        try:
            async with asyncio.timeout(RESOLVE_TIMEOUT):
                found = await self._resolve(httpx.URL(url).raw_host.decode("ascii"), addresses.port_of(url))
        except (OSError, UnicodeError):
            return  # what was known stays; connecting to a name that was never known says what is wrong with it
        self._found[url] = addresses.targets(url, found)

    def _list(self) -> None:
        found = [target for targets in self._found.values() for target in targets]
        first = self._turn % len(found)
        self._targets = {target.name: target for target in found[first:] + found[:first]}
        self.replicas.replace(self._targets)

    async def send(
        self,
        method: Literal["GET", "POST"],
        target: Target,
        path: str,
        headers: Mapping[str, str],
        body: dict[str, Any],
    ) -> httpx.Response:
        """Send one request and read its reply to the end. Raises what httpx raises."""
        async with self.stream(method, target, path, headers, body) as response:
            await response.aread()
        return response

    def stream(
        self,
        method: Literal["GET", "POST"],
        target: Target,
        path: str,
        headers: Mapping[str, str],
        body: dict[str, Any],
    ) -> AbstractAsyncContextManager[httpx.Response]:
        """Send one request; its reply is read within the block, whose end closes it. Raises what httpx raises."""
        url, host, extensions = target.request(path)
        client = self._client(direct=target.address is not None)
        return client.stream(method, url, headers={**headers, **host}, extensions=extensions, **body)

    def _client(self, *, direct: bool) -> httpx.AsyncClient:
        if direct not in self._clients:
            # NO_PROXY speaks of names: a proxy that is not meant for the name must not get its address either.
            self._clients[direct] = httpx.AsyncClient(
                timeout=_TIMEOUT,
                limits=_LIMITS,
                headers=self._headers,
                trust_env=not direct,
                verify=httpx.create_ssl_context(),
            )
        return self._clients[direct]

    async def close(self) -> None:
        """Close the connections, and end a look-up that is under way."""
        if self._looking is not None:
            self._looking.cancel()
        for client in self._clients.values():
            await client.aclose()
        self._clients.clear()
