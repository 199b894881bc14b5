"""Which failures are retried and when, with all the numbers. Pure: time and randomness are passed in.

Scoring is a pure function of its request, so asking twice is always safe. ``replicas`` decides where a request goes.
"""

from __future__ import annotations

import math
import numbers
import random
from collections.abc import Callable, Set
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime

from .errors import APIConnectionError, APIStatusError, JRMError

MAX_RETRIES = 5
MAX_FIRST_ATTEMPTS = 4
# A request that brings servers down must not be carried through a whole fleet.
MAX_BROKEN = 4  # servers whose connection broke during the request; after that, it only goes back to those
MAX_DEVICES_LOST = 2  # times that a server lost its last device during the request
FIRST_DELAY = 0.25  # seconds; doubles with every failure
MAX_DELAY = 8.0
JITTER = 0.5  # a delay is drawn from [1 - JITTER, 1] of itself, so that ranks that failed together retry apart
RETRY_AFTER_JITTER = 0.1  # the same for Retry-After, upwards: never earlier than the server asked
RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503})

# A host that swallows packets must not use up the deadline before another replica is asked.
CONNECT_TIMEOUT = 5.0
FIRST_EJECTION = 1.0  # seconds without requests for a replica that failed; doubles while it keeps failing
MAX_EJECTION = 30.0
# A healthy server answers by the deadline of a call, if only with 504. One that had this long and did not is asked for
# a sign of life before its next request.
SILENCE = 5.0
GREETING_TIMEOUT = 1.0
RESOLVE_EVERY = 30.0  # seconds between two looks at the addresses of a name
RESOLVE_FAILING = 1.0  # the same while a replica fails
RESOLVE_TIMEOUT = 5.0

# Refusals of one request, by a healthy replica.
_NOT_THE_REPLICA = frozenset({"deadline_exceeded", "explain_disabled", "explain_unavailable"})


def retryable(failure: JRMError) -> bool:
    """Whether asking again can help. Never for another 4xx, a passed deadline (504) or a reply with outcomes."""
    if isinstance(failure, APIStatusError):
        return failure.status in RETRIED_STATUSES
    return isinstance(failure, APIConnectionError)


def ejects(failure: JRMError) -> bool:
    """Whether a failure counts against the replica, so that other requests should go elsewhere for a while.

    It cannot be reached, it is starting or draining (503), or a proxy gets no valid reply from it (502, 503, 504).
    Another replica may still answer, even after a proxy's 504.
    """
    if isinstance(failure, APIStatusError):
        return failure.status in (502, 503, 504) and failure.code not in _NOT_THE_REPLICA
    return isinstance(failure, APIConnectionError)


def device_lost(failure: JRMError) -> bool:
    """Whether the server lost its last device while this request was on it."""
    return isinstance(failure, APIStatusError) and failure.code == "device_lost"


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

    def __post_init__(self) -> None:
        delays: dict[str, object] = {"first": self.first, "most": self.most}
        for name, value in delays.items():
            if isinstance(value, bool) or not isinstance(value, numbers.Real):
                raise TypeError(f"{name}={value!r}: expected a number of seconds")
            if not (math.isfinite(float(value)) and float(value) >= 0):
                raise ValueError(f"{name}={value!r}: expected a finite number of seconds, not below 0")
        if not callable(self.uniform):
            raise TypeError(f"uniform: {type(self.uniform).__name__}; expected a function of two numbers")

    def delay(self, failures: int, retry_after: float | None) -> float:
        """Seconds to wait after the ``failures``-th failure in a row: the backoff, and never less than Retry-After."""
        delay = min(self.most, self.first * 2.0 ** min(failures - 1, 32)) * self.uniform(1.0 - JITTER, 1.0)
        if retry_after is None:
            return delay
        return max(delay, retry_after * self.uniform(1.0, 1.0 + RETRY_AFTER_JITTER))


@dataclass(slots=True)
class Schedule:
    """The attempts of one request: ``ready`` says when it may go back to each replica that failed it.

    A replica that failed is tried again only after its delay; another one, if there is one, at once, up to
    MAX_FIRST_ATTEMPTS of them. If all of those failed, the rest would probably fail too: from then on ``elsewhere``
    says when the request may go to a replica it has not tried, after a delay that doubles, and not before one of the
    tried replicas is ready again. Otherwise it would use up its attempts on a large, overloaded fleet in no time.

    There are ``max_retries`` attempts beyond one for each replica (at most MAX_FIRST_ATTEMPTS of these), and none after
    servers lost their last device with the request MAX_DEVICES_LOST times.
    """

    max_retries: int
    backoff: Backoff
    ready: dict[str, float] = field(default_factory=dict)
    elsewhere: float = -math.inf
    _attempts: int = 0
    _failures: dict[str, int] = field(default_factory=dict)
    _broken: set[str] = field(default_factory=set)
    _devices_lost: int = 0

    def exhausted(self, replicas: int) -> bool:
        """Whether the attempts are used up, with that many replicas."""
        attempts = min(replicas, MAX_FIRST_ATTEMPTS) + self.max_retries
        return self._attempts >= attempts or self._devices_lost >= MAX_DEVICES_LOST

    @property
    def only(self) -> Set[str]:
        """The replicas that the request may go to, or all if it is empty."""
        return self._broken if len(self._broken) >= MAX_BROKEN else frozenset()

    def failed(self, replica: str, now: float, failure: JRMError) -> None:
        """Record that an attempt at ``replica`` failed."""
        self._attempts += 1
        self._failures[replica] = self._failures.get(replica, 0) + 1
        self._devices_lost += device_lost(failure)
        if isinstance(failure, APIConnectionError) and failure.sent:
            self._broken.add(replica)
        delay = self.backoff.delay(self._failures[replica], getattr(failure, "retry_after", None))
        self.ready[replica] = now + delay
        if self._attempts >= MAX_FIRST_ATTEMPTS:
            pause = self.backoff.delay(1 + self._attempts - MAX_FIRST_ATTEMPTS, None)
            self.elsewhere = max(now + pause, min(self.ready.values()))
