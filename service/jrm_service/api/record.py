"""What one request did: collected on its way through the layers, written as one line when it has been answered."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from .keys import Key

# One line per request: at INFO, those of probes and scrapes at DEBUG, because they say nothing about anybody's work.
logger = logging.getLogger("jrm.access")

DISCONNECTED = "client_disconnected"
_SCOPE_KEY = "jrm.record"

HANG_UP = "jrm.hang_up"
"""In the state of a scope: drops the connection at once. To end a reply is not enough where its reader has stalled: the
connection would stay until all that was written has been taken."""


@dataclass(slots=True)
class RequestRecord:
    """Counts, times in milliseconds, and names of our own: nothing here was written by the caller but ``request_id``.

    ``error`` is the code of the reply's error, or DISCONNECTED; ``refused`` whether it ended the request as a whole,
    rather than each of its candidates. ``wire`` names whose words the request used, empty for ours. ``started``, and
    when its candidates were handed over and had their outcomes, are seconds of ``time.perf_counter``. ``endless`` is a
    reply that lasts as long as its reader stays, whose duration says nothing about the server.
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
        """Let the layers below find it."""
        scope[_SCOPE_KEY] = self

    @property
    def outcome(self) -> str:
        """``ok``, ``partial`` when only some candidates have a score, or what went wrong."""
        return self.error or ("partial" if self.failed else "ok")

    def log(self, method: str, route: str, status: int, seconds: float, *, level: int = logging.INFO) -> None:
        """Write the line. ``route`` is a path of the API, never the caller's own."""
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
        given = {name: value for name, value in rounded.items() if value is not None}
        logger.log(level, "%s %s %d", method, route, status, extra={"fields": given})


class RequestObserver(Protocol):
    """Told of every request when it has been answered, apart from those of probes. Must neither wait nor raise."""

    def observe(
        self, record: RequestRecord, headers: Mapping[str, str], *, method: str, route: str | None, status: int
    ) -> None:
        """``headers`` are the caller's, ``route`` a path of the API or None, ``method`` OTHER if it is none of HTTP."""
        ...


def hang_up_of(scope: MutableMapping[str, Any]) -> Callable[[], None]:
    """What drops the connection of this scope; nothing where its server cannot."""
    hang_up: Callable[[], None] = scope.get("state", {}).get(HANG_UP, lambda: None)
    return hang_up


def record_of(scope: MutableMapping[str, Any]) -> RequestRecord:
    """The record of the request that this scope belongs to; one that nobody reads where no layer has begun one."""
    record = scope.get(_SCOPE_KEY)
    return record if isinstance(record, RequestRecord) else RequestRecord("")
