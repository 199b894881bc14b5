"""The gate: API keys and the limit of concurrent requests, checked before a byte of a body is read."""

from __future__ import annotations

import binascii
from collections.abc import Callable, Collection
from contextlib import ExitStack

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from jrm_service.errors import RequestError, Unauthorized

from .access_log import record_of
from .errors import UnreadBodyReply, domain_error_reply
from .keys import Key
from .limits import RequestSlots

FindKey = Callable[[bytes], Key | None]


class Gate:
    """ASGI layer that requires an API key and limits how many requests run at once.

    Every path is guarded, known or not, except those that are listed as open: a new route is guarded by default.

    Args:
        app: the application behind the gate.
        find: returns the key with a secret, or None if there is none; without ``find``, no key is required.
        slots: how many POST requests may run at once. Other methods cost nothing.
        uncounted_paths: paths whose POST requests need no slot, because those that hold the slots may wait for them.
        open_paths: paths that need no key, such as health and metrics.
        is_open: whether a request for another path needs no key either.
        refuse: returns the reply to a request that is refused, whose body has not been read.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        find: FindKey | None,
        slots: RequestSlots,
        open_paths: Collection[str],
        uncounted_paths: Collection[str] = (),
        is_open: Callable[[Scope], bool] = lambda _scope: False,
        refuse: Callable[[Scope, RequestError], Response] = lambda _scope, error: domain_error_reply(error),
    ) -> None:
        self._app = app
        self._find = find
        self._slots = slots
        self._open_paths = frozenset(open_paths)
        self._uncounted_paths = frozenset(uncounted_paths)
        self._is_open = is_open
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102 - ASGI
        if scope["type"] != "http" or scope["path"] in self._open_paths or self._is_open(scope):
            await self._app(scope, receive, send)
            return
        with ExitStack() as held:
            try:
                key = self._caller(scope)
                record_of(scope).key = key
                if scope["method"] == "POST" and scope["path"] not in self._uncounted_paths:
                    held.enter_context(self._slots.hold(key))
            except RequestError as error:
                # A body may be on its way, and the caller reads the reply only once it has sent it or was cut off.
                reply = self._refuse(scope, error)
                await (UnreadBodyReply(reply) if _has_body(scope) else reply)(scope, receive, send)
                return
            await self._app(scope, receive, send)

    def _caller(self, scope: Scope) -> Key | None:
        if self._find is None:
            return None
        headers = [value for name, value in scope["headers"] if name == b"authorization"]
        if not headers:
            raise Unauthorized("this server requires an API key: send it as 'Authorization: Bearer KEY'")
        secret = _secret(headers[0]) if len(headers) == 1 else None
        key = None if secret is None else self._find(secret)
        if key is None:
            raise Unauthorized("unknown API key, or not of the form 'Authorization: Bearer KEY'")
        return key


def _secret(header: bytes) -> bytes | None:
    """The key in an Authorization header: a Bearer token, or the password of Basic.

    Most clients of other reward servers cannot set headers; with the URL ``http://jrm:KEY@host`` they send Basic.
    """
    scheme, _, value = header.partition(b" ")
    if scheme.lower() == b"bearer":
        return value.strip()
    if scheme.lower() != b"basic":
        return None
    try:
        _, colon, password = binascii.a2b_base64(value.strip(), strict_mode=True).partition(b":")
    except ValueError:
        return None
    return password if colon else None


def _has_body(scope: Scope) -> bool:
    headers = Headers(scope=scope)
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
