"""Records scored groups for the readers of /v1/watch, beside the scoring and never at its expense."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jrm_service.api.access_log import RequestRecord
from jrm_service.errors import Overloaded
from jrm_service.metrics import Metrics, begin
from jrm_service.scoring.service import GroupInput, ScoreResult
from jrm_service.scoring.types import ServedModel

from .groups import ScoredGroup
from .pictures import Picture, picture_of
from .store import RecentGroups
from .window import Window

logger = logging.getLogger(__name__)

MAX_READERS = 16
FAREWELL_S = 1.0
"""Seconds that readers have to read the rest of their streams when the recorder closes."""
_MOST_WAITING = 1024  # groups
_SHARE = 0.2  # of one CPU, on average, that thumbnails may take
_BURST_SECONDS = 2.0  # that may be used at once: the groups of a trainer's step arrive together
_FULL_LOGS_EVERY_S = 60.0
_NOT_RECORDED = "a scored group could not be recorded for /v1/watch; its caller has its scores"


class Allowance:
    """A budget of seconds of work: it grows at a rate of ``share``, up to ``burst``."""

    def __init__(self, share: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._share = share
        self._burst = burst
        self._clock = clock
        self._left = burst
        self._at = clock()

    def left(self) -> float:
        """The seconds that may be spent now; negative when more were spent."""
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._at) * self._share)
        self._at = now
        return self._left

    def spend(self, seconds: float) -> None:
        """Subtract what was spent."""
        self._left -= seconds


class Recorder:
    """Keeps the last groups and wakes its readers. Use from one event loop; the work is done in a thread.

    A group whose pictures would take too much time or memory is kept without them. The recorder never waits for a
    reader: each reads the kept groups at its own pace.

    Args:
        store: the groups that are kept.
        window: the statistics of their rewards; only the thread uses it, except to read ``groups``.
        metrics: counts the groups.
        max_waiting_bytes: the most memory for groups that wait to be recorded, beyond those that are kept.
    """

    def __init__(self, store: RecentGroups, window: Window, metrics: Metrics, *, max_waiting_bytes: int) -> None:
        self.store = store
        self.window = window
        self.max_waiting_bytes = max_waiting_bytes
        self.closed = False
        self._metrics = metrics
        self._waiting: deque[ScoredGroup] = deque()
        self._waiting_bytes = 0
        self._arrived = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._readers: dict[asyncio.Event, Callable[[], None]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="jrm-recorder")
        self._allowance = Allowance(_SHARE, _BURST_SECONDS)
        self._failure_logged_at = float("-inf")
        for outcome in ("kept", "without_pictures", "failed"):
            begin(metrics.watch_groups, outcome)

    def offer(
        self, groups: Sequence[GroupInput], result: ScoreResult, *, model: ServedModel, record: RequestRecord
    ) -> None:
        """Queue the groups of an answered request to be recorded. Never raises."""
        try:
            now = time.time()
            key = None if record.key is None else record.key.name
            for group, outcomes in zip(groups, result.groups, strict=True):
                scored = ScoredGroup.of(
                    group, outcomes, time=now, request_id=record.request_id, key=key, wire=record.wire, model=model
                )
                self._put(scored)
        except Exception:
            self._failed(_NOT_RECORDED)

    def _put(self, group: ScoredGroup) -> None:
        if self.closed:
            return
        if self._waiting_bytes + group.bytes > self.max_waiting_bytes:
            group = group.without_images()
        if len(self._waiting) >= _MOST_WAITING or self._waiting_bytes + group.bytes > self.max_waiting_bytes:
            self._failed("too many groups wait to be recorded for /v1/watch; this one is left out")
            return
        self._waiting_bytes += group.bytes
        self._waiting.append(group)
        self._idle.clear()
        self._arrived.set()

    async def run(self) -> None:
        """Record what is offered, until cancelled."""
        while True:
            await self._arrived.wait()
            while self._waiting:
                group = self._waiting.popleft()
                try:
                    await self._record(group)
                except Exception:
                    self._failed(_NOT_RECORDED)
                self._waiting_bytes -= group.bytes
            self._arrived.clear()
            self._idle.set()

    async def _record(self, group: ScoredGroup) -> None:
        known = [picture for image in group.images if (picture := self.store.picture(image.key.hex())) is not None]
        loop = asyncio.get_running_loop()
        made = await loop.run_in_executor(self._thread, self._make, group, known, self._allowance.left() > 0.0)
        self._allowance.spend(made.seconds)
        self.store.add(made.event, made.pictures)
        self._metrics.watch_groups.labels("kept" if made.complete else "without_pictures").inc()
        self._wake_readers()

    def _failed(self, message: str) -> None:
        """Count a failure, and log at most one a minute: what fails for one group fails for many."""
        self._metrics.watch_groups.labels("failed").inc()
        now = time.monotonic()
        if now >= self._failure_logged_at + _FULL_LOGS_EVERY_S:
            self._failure_logged_at = now
            logger.error(message, exc_info=sys.exc_info()[0] is not None)

    def _make(self, group: ScoredGroup, known: Sequence[Picture], may_decode: bool) -> _KeptGroup:
        """Runs in the thread. ``known`` are the pictures that are kept already."""
        began = time.thread_time()
        pictures: dict[str, Picture] = {picture.id: picture for picture in known}
        for image in group.images:
            if image.key.hex() not in pictures:
                picture = picture_of(image, may_decode=may_decode)
                if picture is not None:
                    pictures[picture.id] = picture
        event = group.event(pictures.keys())
        self.window.add(group.numbers())
        return _KeptGroup(
            event=event,
            pictures=list(pictures.values()),
            complete=all(image.key.hex() in pictures for image in group.images),
            seconds=time.thread_time() - began,
        )

    async def window_event(self) -> WindowEvent:
        """The window as it is now."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._window_event)

    def _window_event(self) -> WindowEvent:
        document = self.window.document()
        return WindowEvent(self.window.groups, document, json.dumps(document, separators=(",", ":")))

    async def settled(self) -> None:
        """Wait until everything that was offered has been recorded."""
        await self._idle.wait()

    @contextmanager
    def reader(self, hang_up: Callable[[], None] = lambda: None) -> Iterator[asyncio.Event]:
        """Yield an event that is set whenever there is something new, and at the end.

        ``hang_up`` is called a second after the end, so that a slow reader does not keep the server up. Raises
        Overloaded if there are too many readers.
        """
        if len(self._readers) >= MAX_READERS:
            raise Overloaded(f"{MAX_READERS} readers are watching already", retry_after=10)
        changed = asyncio.Event()
        self._readers[changed] = hang_up
        try:
            yield changed
        finally:
            del self._readers[changed]

    def close(self) -> None:
        """End the readers' streams; nothing more is recorded."""
        if self.closed:
            return
        self.closed = True
        for hang_up in self._readers.values():
            asyncio.get_running_loop().call_later(FAREWELL_S, hang_up)
        self._wake_readers()

    def stop(self) -> None:
        """End the thread once it has finished its current picture."""
        self.close()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _wake_readers(self) -> None:
        for changed in self._readers:
            changed.set()


@dataclass(frozen=True, slots=True)
class WindowEvent:
    """The window after ``groups`` groups: the data of its event, as values and as JSON."""

    groups: int
    document: dict[str, Any]
    json: str


@dataclass(frozen=True, slots=True)
class _KeptGroup:
    """A group as it is kept. It took ``seconds`` of CPU time to make."""

    event: str
    pictures: list[Picture]
    complete: bool
    seconds: float
