"""The replicas of a client as they are now, and the connections to them. Belongs to one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from fractions import Fraction
from typing import Any, Literal
from weakref import WeakSet

import httpx

from . import addresses
from .addresses import Resolve, Target
from .proxies import Proxy
from .replicas import EJECTION, Replicas, rotated
from .retry import CONNECT_TIMEOUT, RESOLVE_EVERY, RESOLVE_FAILING, RESOLVE_TIMEOUT, Backoff

# Calls have a deadline of their own; only connecting has a limit here.
_TIMEOUT = httpx.Timeout(None, connect=CONNECT_TIMEOUT)
# Shorter than the 75 s for which a server keeps an idle connection, longer than a trainer's pause between two steps.
KEEPALIVE = 60.0
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=32, keepalive_expiry=KEEPALIVE)
# Raised by a request on a connection that the other end has just closed.
_STALE = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)


class Fleet:
    """Every URL is a replica, and so is every address of a name that has several and is not behind a proxy.

    ``routes`` has the proxy of each URL. A proxy resolves names itself, and connections to addresses would bypass it.
    ``turn`` rotates the list (``replicas.first_turn``), ``replicas`` chooses from it, and ``ejection`` sets for how
    long a failed replica is not chosen. Names are looked up again after ``look_up_every`` seconds. A ``carrier`` is an
    httpx transport that all requests go through; no name is looked up then.
    """

    def __init__(
        self,
        routes: Mapping[str, Proxy | None],
        tls: ssl.SSLContext,
        headers: Mapping[str, str],
        turn: Fraction,
        resolve: Resolve = addresses.resolve,
        ejection: Backoff = EJECTION,
        look_up_every: float = RESOLVE_EVERY,
        carrier: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._headers = headers
        self._turn = turn
        self._resolve = resolve
        self._look_up_every = look_up_every
        self._tls = tls
        self._carrier = carrier
        self._targets_of = {url: [Target(url, proxy=proxy)] for url, proxy in routes.items()}
        dialled = [url for url, proxy in routes.items() if proxy is None and carrier is None]
        self._names = [url for url in dialled if addresses.is_name(url)]
        self._looking: asyncio.Task[None] | None = None
        self._looked_at: float | None = None
        self._targets: dict[str, Target] = {}
        self._clients: dict[Proxy | None, httpx.AsyncClient] = {}
        self._streams: WeakSet[Any] = WeakSet()
        self._guard: AsyncGenerator[None, None] | None = None
        self.replicas = Replicas(routes, ejection)
        self._list()

    def target(self, name: str) -> Target:
        """Return the replica that ``replicas`` calls ``name``."""
        return self._targets[name]

    async def refresh(self, *, failing: bool = False) -> None:
        """Look up the names when it is time, which is sooner while a replica is ``failing``: it may have moved.

        The first look-up is awaited, later ones run beside the requests.
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
                resolved = await self._resolve(httpx.URL(url).raw_host.decode("ascii"), addresses.port_of(url))
        except (OSError, UnicodeError):
            return  # known addresses stay; a name that never resolved fails when connecting, with a proper message
        self._targets_of[url] = addresses.targets(url, resolved)

    def _list(self) -> None:
        listed = [target for targets in self._targets_of.values() for target in targets]
        self._targets = {target.name: target for target in rotated(listed, self._turn)}
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

    @contextlib.asynccontextmanager
    async def stream(
        self,
        method: Literal["GET", "POST"],
        target: Target,
        path: str,
        headers: Mapping[str, str],
        body: dict[str, Any],
    ) -> AsyncIterator[httpx.Response]:
        """Send one request; its reply is read within the block, whose end closes it. Raises what httpx raises.

        A kept connection may be closed by the server, or by a proxy in between, just as it is reused. That says
        nothing about the server, so the request is sent once more, over a new connection.
        """
        url, host, extensions = target.request(path)
        kept = _KeptConnection()
        options: dict[str, Any] = {"headers": {**headers, **host}, **body}
        async with contextlib.AsyncExitStack() as stack:
            try:
                sent = self._client(target.proxy).stream(
                    method, url, extensions={**extensions, "trace": kept.trace}, **options
                )
                response = await stack.enter_async_context(sent)
            except _STALE:
                if not kept.used:
                    raise
                client = await stack.enter_async_context(self._new_client(target.proxy))
                response = await stack.enter_async_context(client.stream(method, url, extensions=extensions, **options))
            if "location" in response.extensions:
                response.headers["location"] = response.extensions["location"]
            if "network_stream" in response.extensions:
                self._streams.add(response.extensions["network_stream"])
            yield response

    def _client(self, proxy: Proxy | None) -> httpx.AsyncClient:
        if proxy not in self._clients:
            self._clients[proxy] = self._new_client(proxy)
        return self._clients[proxy]

    def _new_client(self, proxy: Proxy | None) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            timeout=_TIMEOUT,
            limits=_LIMITS,
            headers=self._headers,
            trust_env=False,  # the environment was read when the JRM client was made
            proxy=None if proxy is None else httpx.Proxy(proxy.url, ssl_context=self._proxy_tls(proxy)),
            verify=self._tls,
            transport=self._carrier,
            event_hooks={"response": [_hide_location]},
        )

    def _proxy_tls(self, proxy: Proxy) -> ssl.SSLContext | None:
        return self._tls if proxy.url.lower().startswith("https") else None

    async def open(self) -> None:
        """Have the running loop close the connections when it shuts down, as ``asyncio.run`` does at its end."""
        if self._guard is None:
            self._guard = self._until_shutdown()
            await anext(self._guard)

    async def _until_shutdown(self) -> AsyncGenerator[None, None]:
        # A loop closes its unfinished generators before it ends: the only hook that every loop has.
        try:
            yield
        finally:
            await self._close()

    async def close(self) -> None:
        """Close the connections, and end a look-up that is under way."""
        if self._guard is None:
            await self._close()
        else:
            await self._guard.aclose()
            self._guard = None

    async def _close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
        for client in self._clients.values():
            await client.aclose()
        self._clients.clear()

    def abandon(self) -> None:
        """Close the sockets of a loop that was closed without being shut down; nothing can be awaited on it."""
        for stream in list(self._streams):
            with contextlib.suppress(Exception):
                # asyncio shows its sockets without their close(); uvloop's are closed with the loop.
                stream.get_extra_info("socket")._sock.close()
        self._clients.clear()


async def _hide_location(response: httpx.Response) -> None:
    """Redirects are reported and not followed; httpx would still parse the URL, and fail where it cannot."""
    if "location" in response.headers:
        response.extensions["location"] = response.headers.pop("location")


class _KeptConnection:
    """Records whether a request reused an existing connection."""

    def __init__(self) -> None:
        self._connected = False
        self._sent = False

    @property
    def used(self) -> bool:
        """Whether the request was sent without a new connection."""
        return self._sent and not self._connected

    async def trace(self, event: str, _: Mapping[str, Any]) -> None:
        """Take note of what httpcore does; httpx calls this."""
        self._connected |= event.endswith("connect_tcp.started")
        self._sent |= event.endswith("send_request_headers.started")
