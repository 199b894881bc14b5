"""The keys file on disk: reloaded while the server runs, and appended to by ``jrm key new``."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from jrm_service.errors import KeysError
from jrm_service.metrics import Metrics, begin

from .keys import Key, KeyRing, parse

logger = logging.getLogger(__name__)

_MAX_BYTES = 4 * 2**20
_POLL_SECONDS = 1.0

_Signature = tuple[int, ...]


class KeyFile:
    """The keys in force: those of a file, which is read again within a second after it has changed.

    A file that has become unreadable or invalid leaves the keys in force as they were, and is logged and counted once
    per change: a typo locks nobody out. A key that was removed from a valid file is refused from then on.

    Raises KeysError if the file cannot be used at the start.
    """

    def __init__(self, path: Path, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._metrics = metrics
        self._clock = clock
        self._seen = _signature(path)
        self._use(KeyRing(read(path)))
        for result in ("ok", "failed"):
            begin(metrics.key_reloads, result)
        self._look_again_at = clock() + _POLL_SECONDS

    def find(self, secret: bytes) -> Key | None:
        """The key with this secret, if it is in force."""
        self._follow()
        return self._ring.find(secret)

    def current(self, key: Key) -> Key | None:
        """The current version of a key that was in force; None once its line is gone."""
        self._follow()
        return self._ring.current(key)

    def _follow(self) -> None:
        now = self._clock()
        if now < self._look_again_at:
            return
        self._look_again_at = now + _POLL_SECONDS
        signature = _signature(self._path)
        if signature == self._seen:
            return
        self._seen = signature  # taken before the content is read: a change in between is noticed the next time
        try:
            self._use(KeyRing(read(self._path)))
        except KeysError as error:
            self._metrics.key_reloads.labels("failed").inc()
            logger.error("%s; the previous %d API keys stay in force", error, len(self._ring))
        else:
            self._metrics.key_reloads.labels("ok").inc()

    def _use(self, ring: KeyRing) -> None:
        self._ring = ring
        self._metrics.keys.set(len(ring))
        level = logging.INFO if len(ring) else logging.WARNING  # every request will be refused
        logger.log(level, "%s: %d API keys are in force", self._path, len(ring))


def read(path: Path) -> list[Key]:
    """Return the keys of a file. Raises KeysError, each problem with the file's name."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise KeysError([f"{path}: {error.strerror}"]) from None
    return _parse(path, content)


def append(path: Path, key: Key) -> None:
    """Add a key to a file; a file that does not exist is created, readable by its owner only.

    Concurrent calls wait for each other, and a server that reads meanwhile sees whole lines. Raises KeysError for a
    file that has mistakes or already has the key's name, OSError when it cannot be written.
    """
    import fcntl  # POSIX only; a server elsewhere can still read its keys

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        content = file.read(_MAX_BYTES + 1)  # a device would never end
        if any(existing.name == key.name for existing in _parse(path, content)):
            raise KeysError([f"{path}: there is a key of this name already"])
        start = "" if not content or content.endswith(b"\n") else "\n"
        os.write(descriptor, f"{start}{key.line()}\n".encode())
        os.fsync(descriptor)


def _signature(path: Path) -> _Signature | None:
    """Changes whenever the file is rewritten, replaced or made readable; None if it is gone."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def _parse(path: Path, content: bytes) -> list[Key]:
    if len(content) > _MAX_BYTES:
        raise KeysError([f"{path}: over {_MAX_BYTES} bytes"])
    try:
        return parse(content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise KeysError([f"{path}: not UTF-8"]) from None
    except KeysError as error:
        raise KeysError([f"{path}: {problem}" for problem in error.problems]) from None
