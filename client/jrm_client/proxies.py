"""What the environment says about proxies: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY.

Decided here for each URL rather than by httpx, which does not know CIDR ranges in NO_PROXY, fails on an entry that it
cannot parse, and fails on a proxy that no URL uses.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import os
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.request import getproxies, proxy_bypass

import httpx

from .urls import check_url

_SCHEMES = ("http", "https", "socks5", "socks5h")


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy, and the variable that names it. Messages show ``name``, which has no user and no password."""

    url: str
    variable: str

    @property
    def name(self) -> str:
        """The URL without credentials, and where it comes from."""
        url = httpx.URL(self.url)
        return f"{url.copy_with(userinfo=b'')} ({self.variable})".replace("/ (", " (")


def proxy_of(url: str) -> Proxy | None:
    """Return the proxy that requests to ``url`` go through, None for none.

    Raises ValueError with the name of the variable if that proxy cannot be used.
    """
    parsed = httpx.URL(url)
    proxies = getproxies()  # on macOS and Windows, the system's settings too
    kind = next((kind for kind in (parsed.scheme, "all") if proxies.get(kind)), None)
    if kind is None or _excepted(parsed, proxies.get("no", "")):
        return None
    return _checked(proxies[kind].strip(), _variable(kind))


def _checked(proxy: str, variable: str) -> Proxy:
    with_scheme = proxy if "://" in proxy else f"http://{proxy}"
    try:
        check_url(with_scheme, _SCHEMES)
    except ValueError as error:
        raise ValueError(f"{variable}: not the URL of a proxy: {error}") from None
    if with_scheme.lower().startswith("socks") and importlib.util.find_spec("socksio") is None:
        raise ValueError(f"{variable}: a SOCKS proxy needs the package socksio: pip install 'httpx[socks]'")
    return Proxy(with_scheme, variable)


def _variable(kind: str) -> str:
    names = (f"{kind}_proxy", f"{kind}_proxy".upper())
    return next((name for name in names if os.environ.get(name)), f"the system's {kind} proxy")


def _excepted(url: httpx.URL, no_proxy: str) -> bool:
    return any(_matches(entry, url) for entry in _entries(no_proxy)) or bool(proxy_bypass(url.host))


def _entries(no_proxy: str) -> Iterator[str]:
    for entry in no_proxy.lower().replace(",", " ").split():
        yield entry.rpartition("://")[2]


def _matches(entry: str, url: httpx.URL) -> bool:
    """Whether an entry of NO_PROXY matches ``url``; one that cannot be parsed matches nothing.

    ``*``, a name (which includes the names under it), an address or a range of addresses; each but ``*`` and a range
    may have a port.
    """
    if entry == "*":
        return True
    host = url.host.lower()
    address = _address(host)
    if address is not None and (network := _network(entry)) is not None:
        return address in network
    name, port = _split_port(entry)
    if port is not None and port != str(url.port or {"http": 80, "https": 443}[url.scheme]):
        return False
    if address is not None:
        return address == _address(name)
    name = name.removeprefix("*").strip(".")
    return bool(name) and (host == name or host.endswith(f".{name}"))


def _split_port(entry: str) -> tuple[str, str | None]:
    head, colon, port = entry.rpartition(":")
    if colon and port.isdigit() and (":" not in head or head.endswith("]")):
        return head, port
    return entry, None


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None


def _network(entry: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    head, slash, length = entry.partition("/")
    try:
        return ipaddress.ip_network(f"{head.removeprefix('[').removesuffix(']')}{slash}{length}", strict=False)
    except ValueError:
        return None
