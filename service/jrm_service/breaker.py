"""A circuit breaker: stops calls to a service that does not answer, and tries again later. Pure: it gets a clock."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum


class Circuit(IntEnum):
    """Whether calls go through; the numbers are the values of the metric."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Attempt:
    """One call that was allowed. Its end is reported once, as succeeded, failed or abandoned."""


class CircuitBreaker:
    """Allows every call when closed, none when open, and one when half open, which decides.

    ``failures`` failed calls in a row open it. After ``cooldown_s`` seconds it is half open, and one trial call is
    allowed. If that succeeds, the circuit closes; if not, it opens again for twice as long, up to ``max_cooldown_s``.
    Calls from before it opened no longer change it when they end. ::

        attempt = breaker.attempt()
        if attempt is not None:
            try:
                ...
            except OSError:
                breaker.failed(attempt)
            else:
                breaker.succeeded(attempt)

    Args:
        failures: at least 1.
        cooldown_s: seconds.
        max_cooldown_s: seconds, at least ``cooldown_s``.
        clock: monotonic seconds.
    """

    def __init__(self, *, failures: int, cooldown_s: float, max_cooldown_s: float, clock: Callable[[], float]) -> None:
        if failures < 1 or not 0 < cooldown_s <= max_cooldown_s:
            raise ValueError(f"failures {failures}, cooldown_s {cooldown_s}, max_cooldown_s {max_cooldown_s}")
        self._allowed_failures = failures
        self._first_cooldown_s = cooldown_s
        self._max_cooldown_s = max_cooldown_s
        self._clock = clock
        self._failures = 0
        self._cooldown_s = cooldown_s
        self._opened_at: float | None = None
        self._trial: Attempt | None = None

    @property
    def state(self) -> Circuit:
        """The current state; reading changes nothing."""
        if self._opened_at is None:
            return Circuit.CLOSED
        cooling = self._clock() - self._opened_at < self._cooldown_s
        return Circuit.OPEN if cooling else Circuit.HALF_OPEN

    def attempt(self) -> Attempt | None:
        """Return an attempt if a call may be made now, else None."""
        state = self.state
        if state is Circuit.OPEN or self._trial is not None:
            return None
        attempt = Attempt()
        if state is Circuit.HALF_OPEN:
            self._trial = attempt
        return attempt

    def succeeded(self, attempt: Attempt) -> None:
        """Record that the call was answered in time."""
        if attempt is self._trial:
            self._trial = self._opened_at = None
            self._cooldown_s = self._first_cooldown_s
        if self._opened_at is None:
            self._failures = 0

    def failed(self, attempt: Attempt) -> None:
        """Record that the call failed, or was not answered in time."""
        if attempt is self._trial:
            self._trial = None
            self._cooldown_s = min(2 * self._cooldown_s, self._max_cooldown_s)
            self._opened_at = self._clock()
        elif self._opened_at is None:
            self._failures += 1
            if self._failures >= self._allowed_failures:
                self._opened_at = self._clock()

    def abandoned(self, attempt: Attempt) -> None:
        """Record that nobody waited for the call. If it was the trial, the next call becomes the trial."""
        if attempt is self._trial:
            self._trial = None
