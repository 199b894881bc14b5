"""Host names that resolve to several addresses: each address is a replica.

A replica is dialled at its address, while the Host header, the TLS server name and the certificate check still use the
name, as for any other connection to it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

import httpx

from .proxies import Proxy

Resolve: TypeAlias = Callable[[str, int], Awaitable[list[str]]]


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests to one replica go: to ``url``, perhaps through ``proxy``, or to an address that serves it."""

    url: str
    address: str | None = None
    proxy: Proxy | None = None

    @property
    def name(self) -> str:
        """What error messages call the replica."""
        return self.name_of("")

    def name_of(self, path: str) -> str:
        """What error messages call one of its routes."""
        return self.url + path if self.address is None else f"{self.url}{path} at {self.address}"

    @property
    def via(self) -> str:
        """What error messages add for a request through a proxy."""
        return f" through the proxy {self.proxy.name}" if self.proxy else ""

    def request(self, path: str) -> tuple[str, dict[str, str], dict[str, str]]:
        """Return the URL to dial, and the headers and httpx extensions that keep the name."""
        if self.address is None:
            return self.url + path, {}, {}
        url = httpx.URL(self.url)
        dialled = str(url.copy_with(host=self.address)).rstrip("/")
        return dialled + path, {"host": url.netloc.decode("ascii")}, {"sni_hostname": url.raw_host.decode("ascii")}


def is_name(url: str) -> bool:
    """Whether the host of ``url`` has to be resolved: it is neither an IP address nor localhost."""
    host = httpx.URL(url).host
    if host == "localhost" or host.endswith(".localhost"):
        return False
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return True
    return False


def targets(url: str, addresses: Iterable[str]) -> list[Target]:
    """Return a target for each distinct address, sorted; only the name itself if there is nothing to choose from.

    One IPv4 and one IPv6 address belong to one host, which is best reached by its name: the connection is then tried
    over both. Link-local addresses are left out, as a URL cannot hold their zone.
    """
    usable = {address for address in addresses if "%" not in address}
    versions = [ipaddress.ip_address(address).version for address in usable]
    if not versions or max(versions.count(4), versions.count(6)) == 1:
        return [Target(url)]
    return [Target(url, address) for address in sorted(usable)]


def port_of(url: str) -> int:
    """Return the port that a URL names or implies."""
    parsed = httpx.URL(url)
    return parsed.port or (443 if parsed.scheme == "https" else 80)


async def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of ``host``, IPv4 and IPv6. Raises OSError for an unknown name."""
    entries = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(sockaddr[0]) for *_, sockaddr in entries]
