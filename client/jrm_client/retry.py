"""Which failures are tried again, where and when. Pure: time and randomness are passed in.

Scoring is a pure function of its request, so asking twice is always safe.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime

from .errors import APIConnectionError, APIStatusError, JRMError

MAX_RETRIES = 5
FIRST_DELAY = 0.25  # seconds; doubles with every failure
MAX_DELAY = 8.0
JITTER = 0.5  # a delay is drawn from [1 - JITTER, 1] of itself, so that ranks that failed together part
RETRY_AFTER_JITTER = 0.1  # the same for Retry-After, upwards: never earlier than the server asked
RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503})


def retryable(failure: JRMError) -> bool:
    """Whether asking again can help. Never for another 4xx, a passed deadline (504) or a reply with verdicts."""
    if isinstance(failure, APIStatusError):
        return failure.status in RETRIED_STATUSES
    return isinstance(failure, APIConnectionError)


def parse_retry_after(value: str | None, now: float) -> float | None:
    """Seconds from a Retry-After header (a number of seconds or an HTTP date); None if absent or unreadable.

    ``now`` is Unix time. A date that has passed gives 0.
    """
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.replace(".", "", 1).isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except (ValueError, OverflowError):
        return None


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential delays in seconds. ``uniform`` draws from [a, b]."""

    first: float = FIRST_DELAY
    most: float = MAX_DELAY
    uniform: Callable[[float, float], float] = random.uniform

    def delay(self, failures: int, retry_after: float | None) -> float:
        """Seconds to wait after the ``failures``-th failure in a row: the backoff, and never less than Retry-After."""
        delay = min(self.most, self.first * 2.0 ** min(failures - 1, 32)) * self.uniform(1.0 - JITTER, 1.0)
        if retry_after is None:
            return delay
        return max(delay, retry_after * self.uniform(1.0, 1.0 + RETRY_AFTER_JITTER))


@dataclass(slots=True)
class Schedule:
    """Where one request goes next. ``servers`` are in order of preference; each waits out its own failures.

    So a server that just failed is tried again only after its delay, and another one, if there is one, at once.
    There are ``max_retries`` attempts beyond one for each server.
    """

    servers: Sequence[str]
    max_retries: int
    backoff: Backoff
    _attempts: int = 0
    _failures: dict[str, int] = field(default_factory=dict)
    _ready: dict[str, float] = field(default_factory=dict)

    @property
    def exhausted(self) -> bool:
        """Whether the attempts are used up."""
        return self._attempts >= len(self.servers) + self.max_retries

    def next(self, now: float) -> tuple[str, float]:
        """Return the server to ask and the seconds to wait before."""
        server = min(self.servers, key=lambda name: self._ready.get(name, now))
        return server, max(0.0, self._ready.get(server, now) - now)

    def failed(self, server: str, now: float, failure: JRMError) -> None:
        """Record that an attempt at ``server`` failed with something ``retryable``."""
        self._attempts += 1
        self._failures[server] = self._failures.get(server, 0) + 1
        delay = self.backoff.delay(self._failures[server], getattr(failure, "retry_after", None))
        self._ready[server] = now + delay
