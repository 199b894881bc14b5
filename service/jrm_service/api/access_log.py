"""The access log: the record of one request, filled in by the layers and written as one line after the reply."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from .keys import Key

# One line per request: at INFO, and at DEBUG for probes and scrapes, which would drown the rest.
logger = logging.getLogger("jrm.access")

DISCONNECTED = "client_disconnected"
_SCOPE_KEY = "jrm.record"

HANG_UP = "jrm.hang_up"
"""In the state of a scope: a function that drops the connection at once. Ending the reply is not enough when its reader
has stalled: the connection would stay open until everything that was written has been read."""


@dataclass(slots=True)
class RequestRecord:
    """Counts, times in milliseconds, and names of our own: only ``request_id`` was written by the caller.

    ``error`` is the code of the reply's error, or DISCONNECTED; ``refused`` whether it ended the request as a whole,
    rather than each of its candidates. ``wire`` names the request's wire format, empty for our own. ``started``,
    ``scoring_began`` and ``scoring_ended`` are seconds of ``time.perf_counter``. ``endless``: the reply lasts as long
    as its reader stays, so its duration says nothing about the server.
    """

    request_id: str
    key: Key | None = None
    wire: str = ""
    error: str | None = None
    refused: bool = False
    body_bytes: int | None = None
    candidates: int | None = None
    failed: int | None = None
    cached: int | None = None
    images: int | None = None
    tokens: int | None = None
    tokens_computed: int | None = None
    preprocess_ms: float | None = None
    queue_ms: float | None = None
    inference_ms: float | None = None
    started: float = field(default_factory=time.perf_counter)
    scoring_began: float | None = None
    scoring_ended: float | None = None
    endless: bool = False

    def attach(self, scope: MutableMapping[str, Any]) -> None:
        """Make the record available to the layers below."""
        scope[_SCOPE_KEY] = self

    @property
    def outcome(self) -> str:
        """``ok``, ``partial`` when only some candidates have a score, or what went wrong."""
        return self.error or ("partial" if self.failed else "ok")

    def log(self, method: str, route: str, status: int, seconds: float, *, level: int = logging.INFO) -> None:
        """Write the line. ``route`` is a path of the API, never the path that the caller sent."""
        if not logger.isEnabledFor(level):
            return
        fields: dict[str, Any] = {
            "request_id": self.request_id,
            "method": method,
            "route": route,
            "status": status,
            "outcome": self.outcome,
            "key": self.key.name if self.key else None,
            "wire": self.wire or None,
            "body_bytes": self.body_bytes,
            "candidates": self.candidates,
            "failed": self.failed,
            "cached": self.cached,
            "images": self.images,
            "tokens": self.tokens,
            "tokens_computed": self.tokens_computed,
            "preprocess_ms": self.preprocess_ms,
            "queue_ms": self.queue_ms,
            "inference_ms": self.inference_ms,
            "total_ms": seconds * 1e3,
        }
        rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in fields.items()}
        known = {name: value for name, value in rounded.items() if value is not None}
        logger.log(level, "%s %s %d", method, route, status, extra={"fields": known})


class RequestObserver(Protocol):
    """Called for every request after its reply, except for probes. Must neither wait nor raise."""

    def observe(
        self, record: RequestRecord, headers: Mapping[str, str], *, method: str, route: str | None, status: int
    ) -> None:
        """``headers`` are the caller's, ``route`` a path of the API or None, ``method`` OTHER if it is not HTTP's."""
        ...


def hang_up_of(scope: MutableMapping[str, Any]) -> Callable[[], None]:
    """A function that drops the connection of this scope; it does nothing if the server does not support that."""
    hang_up: Callable[[], None] = scope.get("state", {}).get(HANG_UP, lambda: None)
    return hang_up


def record_of(scope: MutableMapping[str, Any]) -> RequestRecord:
    """The record of the request that this scope belongs to, or a new one that nobody reads if it has none."""
    record = scope.get(_SCOPE_KEY)
    return record if isinstance(record, RequestRecord) else RequestRecord("")
