"""The distribution of rewards over time, and its drift from the first hour. Pure."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .sample import Sample, Values, rounded, shift, stability_index

BUCKETS = 60
FIRST_SECONDS = 10
MOST_SECONDS = 640
"""Seconds of a bucket at first and at most: 60 of them cover ten minutes at first, and up to ten hours."""
HOUR = 3600.0
_EQUAL = 1e-6  # a group whose rewards are no further apart teaches a trainer nothing
_BUCKET_VALUES = 512
_REFERENCE_VALUES = 4096
_ENOUGH = 200  # rewards that the newest buckets, and the first hour, must hold to be compared


@dataclass(frozen=True, slots=True)
class Numbers:
    """The numbers of one group: rewards float64 [N] and, by dimension, means float64 [N] of its N scored edits.

    ``model`` is the fingerprint of the checkpoint that scored them.
    """

    model: str
    rewards: Values
    dimensions: Mapping[str, Values]
    errors: int


class Bucket:
    """The groups of one span of time, from ``start`` in seconds since 1970."""

    def __init__(self, start: float, size: int, random: np.random.Generator) -> None:
        self.start = start
        self.groups = 0
        self.errors = 0
        self.reward = Sample(size, random)
        self.dimensions: dict[str, Sample] = {}
        self._compared = 0  # groups with two rewards or more
        self._equal = 0
        self._spreads = 0.0
        self._size = size
        self._random = random
        self._document: dict[str, Any] | None = None

    def add(self, group: Numbers) -> None:
        """Add a group."""
        self.groups += 1
        self.errors += group.errors
        self.reward.add(group.rewards)
        for name, values in group.dimensions.items():
            self._dimension(name).add(values)
        if len(group.rewards) >= 2:
            self._compared += 1
            self._equal += int(np.ptp(group.rewards) <= _EQUAL)
            self._spreads += float(group.rewards.std())
        self._document = None

    def merge(self, other: Bucket) -> None:
        """Add the groups of another bucket."""
        self.groups += other.groups
        self.errors += other.errors
        self._compared += other._compared
        self._equal += other._equal
        self._spreads += other._spreads
        self.reward.merge(other.reward)
        for name, values in other.dimensions.items():
            self._dimension(name).merge(values)
        self._document = None

    def document(self) -> dict[str, Any]:
        """Its summary for JSON."""
        if self._document is None:
            candidates = self.reward.count + self.errors
            self._document = {
                "start": self.start,
                "groups": self.groups,
                "candidates": candidates,
                "errors": self.errors,
                "error_share": rounded(self.errors / candidates) if candidates else None,
                "compared": self._compared,
                "no_spread_share": rounded(self._equal / self._compared) if self._compared else None,
                "group_std": rounded(self._spreads / self._compared) if self._compared else None,
                "reward": self.reward.document(),
                "dimensions": {name: values.document() for name, values in self.dimensions.items()},
            }
        return self._document

    def _dimension(self, name: str) -> Sample:
        if name not in self.dimensions:
            self.dimensions[name] = Sample(self._size, self._random)
        return self.dimensions[name]


class Window:
    """The rewards of a model's groups, in at most BUCKETS buckets of equal length; empty buckets are left out.

    A group of another model starts a new window: its rewards are on a scale of their own.

    When the buckets are full, neighbours are merged into buckets of twice the length, up to MOST_SECONDS; after that
    the oldest are dropped. ``clock`` gives seconds since 1970; if it goes backwards, the newest bucket gets the groups.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.groups = 0
        """How many groups were added; tells whether anything has changed."""
        self._clock = clock
        self._random = np.random.default_rng(0)
        self._begin("")

    def _begin(self, model: str) -> None:
        self.seconds = FIRST_SECONDS
        self._model = model
        self._buckets: deque[Bucket] = deque()
        self._reference: Bucket | None = None
        self._compared: dict[str, Any] | None = None  # the last comparison, shared by all readers until a group comes

    def add(self, group: Numbers) -> None:
        """Add a group at the current time."""
        if group.model != self._model:
            self._begin(group.model)
        now = self._clock()
        self.groups += 1
        self._compared = None
        if self._reference is None:
            self._reference = Bucket(now, _REFERENCE_VALUES, self._random)
        if not self._is_complete(self._reference, now):
            self._reference.add(group)
        start = self._start_of(now)
        if not self._buckets or start > self._buckets[-1].start:
            self._buckets.append(Bucket(start, _BUCKET_VALUES, self._random))
            self._fit(start)
        self._buckets[-1].add(group)

    def document(self) -> dict[str, Any]:
        """The data of the event ``window``, for JSON."""
        return {
            "bucket_seconds": self.seconds,
            "buckets": [bucket.document() for bucket in self._buckets],
            **self.comparison(),
        }

    def comparison(self) -> dict[str, Any]:
        """The newest buckets, the first hour, and how far the one has drifted from the other."""
        first = self._reference
        if first is None:
            return {"first_hour": None, "now": None, "drift": None}
        if self._compared is None:
            self._compared = self._compare(first)
        complete = self._is_complete(first, self._clock())
        return {"first_hour": {**first.document(), "complete": complete}, **self._compared}

    @staticmethod
    def _is_complete(first: Bucket, now: float) -> bool:
        """Whether the first hour is over. It is extended while it holds too little, such as a first try."""
        return now >= first.start + HOUR and first.reward.count >= _ENOUGH

    def _compare(self, first: Bucket) -> dict[str, Any]:
        now = self._newest()
        return {
            "now": now.document(),
            "drift": {
                "reward": _change(first.reward, now.reward),
                "dimensions": {
                    name: _change(first.dimensions[name], values)
                    for name, values in now.dimensions.items()
                    if name in first.dimensions
                },
            },
        }

    def _newest(self) -> Bucket:
        """The newest buckets, as many as hold enough to be compared, merged into one."""
        merged = Bucket(self._buckets[-1].start, _BUCKET_VALUES, self._random)
        for bucket in reversed(self._buckets):
            merged.merge(bucket)
            merged.start = bucket.start
            if merged.reward.count >= _ENOUGH:
                break
        return merged

    def _fit(self, newest: float) -> None:
        while self._buckets[0].start <= newest - BUCKETS * self.seconds and self.seconds < MOST_SECONDS:
            self._double()
            newest = self._buckets[-1].start
        while self._buckets[0].start <= newest - BUCKETS * self.seconds:
            self._buckets.popleft()

    def _double(self) -> None:
        self.seconds *= 2
        merged: deque[Bucket] = deque()
        for bucket in self._buckets:
            start = self._start_of(bucket.start)
            if not merged or merged[-1].start != start:
                merged.append(Bucket(start, _BUCKET_VALUES, self._random))
            merged[-1].merge(bucket)
        self._buckets = merged

    def _start_of(self, moment: float) -> float:
        return math.floor(moment / self.seconds) * self.seconds


def _change(first: Sample, now: Sample) -> dict[str, float | None]:
    if first.count < _ENOUGH:
        return {"shift": None, "psi": None}
    return {"shift": shift(first, now), "psi": stability_index(first, now)}
