"""Checks URLs from callers and the environment before httpx sees them."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

import httpx

MAX_SHOWN = 200


def check_url(url: str, schemes: Sequence[str]) -> None:
    """Raise ValueError unless ``url`` has one of ``schemes``, a host that can be looked up and a port that exists.

    The message leaves out the user and the password.
    """
    shown = repr(_without_userinfo(url)[:MAX_SHOWN])
    if not url.isprintable() or " " in url:
        raise ValueError(f"{shown} has spaces or line breaks in it")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:  # brackets that do not match, a port that is no number or over 65535
        raise ValueError(f"{shown} cannot be read: {_reason(error)}") from None
    if parts.scheme not in schemes or not host:
        wanted = " or ".join(f"{scheme}://" for scheme in schemes)
        raise ValueError(f"{shown} does not begin with {wanted} and a host")
    if port == 0 or parts.netloc.endswith(":"):
        raise ValueError(f"{shown} has no usable port; expected 1..65535")
    try:
        known = httpx.URL(url).raw_host
        if ":" not in host:
            known.decode("ascii").removesuffix(".").encode("idna")  # what looking the name up does
    except (httpx.InvalidURL, ValueError) as error:
        raise ValueError(f"{shown} has an invalid host or port: {_reason(error)}") from None


def _without_userinfo(url: str) -> str:
    scheme, separator, rest = url.rpartition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}{separator}{authority.rpartition('@')[2]}{slash}{path}"


def _reason(error: Exception) -> str:
    # httpx and urllib repeat the part that they mean, and it may hold a password.
    return str(error).partition(": '")[0].partition(" as: ")[0].partition("'@")[0][:MAX_SHOWN]
