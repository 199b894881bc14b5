"""Two measured rates: how fast the queue drains, and how busy a device is. Pure: the time is passed in."""

from __future__ import annotations

import math


class DrainRate:
    """Candidates per second that leave through a device, over the last few batches in which there was work.

    Time without admitted work does not count: an idle hour says nothing about how fast a full queue drains.
    """

    _KEEP = 0.8  # each finished batch weighs 0.8 of the next one: roughly the last five count

    def __init__(self) -> None:
        self._candidates = 0.0
        self._seconds = 0.0
        self._mark = 0.0

    def resume(self, now: float) -> None:
        """Record that the queue was empty until now."""
        self._mark = now

    def record(self, candidates: int, now: float) -> None:
        """Record that a batch of ``candidates`` was finished."""
        self._candidates = self._candidates * self._KEEP + candidates
        self._seconds = self._seconds * self._KEEP + max(0.0, now - self._mark)
        self._mark = now

    def seconds_for(self, candidates: float, now: float) -> float:
        """Seconds until ``candidates`` more will have left; 0 before anything was measured.

        A device that has not finished anything for longer than the whole measured span counts as having slowed down.
        """
        seconds = max(self._seconds, now - self._mark)
        if self._candidates == 0.0 or seconds <= 0.0:
            return 0.0
        return candidates * seconds / self._candidates


class BusyShare:
    """The share of recent time, 0 to 1, in which a device worked: a mean with exponentially fading weights.

    Args:
        now: seconds, the moment from which it is measured.
        fade: seconds after which a moment weighs 1/e.
    """

    def __init__(self, now: float, fade: float = 60.0) -> None:
        self._fade = fade
        self._share = 0.0
        self._busy = False
        self._since = now

    def switch(self, busy: bool, now: float) -> None:
        """Record that the device starts or stops working."""
        self._share = self.at(now)
        self._busy = busy
        self._since = now

    def at(self, now: float) -> float:
        """The share as of ``now``; reading changes nothing, so any thread may do it."""
        kept = math.exp(-max(0.0, now - self._since) / self._fade)
        return self._share * kept + (1.0 - kept if self._busy else 0.0)
