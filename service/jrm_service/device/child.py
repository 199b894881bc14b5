"""One life of a worker process: started, listened to, ended. What it works on is nothing to this module."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

from jrm_service.scoring.backend import StartFailed
from jrm_service.scoring.batcher import restart_pauses

from .channel import Channel, LogLine, NotLoaded

T = TypeVar("T")

logger = logging.getLogger(__name__)

_REAP_S = 10.0
_PYTHON = (sys.executable, "-P")  # -P: nothing is imported from wherever the server was started


class Child:
    """A worker process, a thread that sends to it and one that receives from it.

    Create it in an event loop that runs in the main thread: a worker asks the kernel to be killed when the thread that
    started it ends, so that not even a stopped worker outlives a server that was killed. It has a session of its own,
    because a terminal's Ctrl-C is for the server, which drains before it ends its workers.

    Raises StartFailed where the machine has no room for one more process.

    Args:
        module: what is run as the process; it is told its end of the channel and the id of this process.
        received: called in the event loop with each message, but for log lines and what ``ask`` waits for.
        ended: called in the event loop, once, with how the process ended.
    """

    def __init__(self, module: str, received: Callable[[Any], None], ended: Callable[[str], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_message, self._on_end = received, ended
        self._asked: asyncio.Future[Any] | None = None
        self.lost: asyncio.Future[None] = self._loop.create_future()
        self._outbox: SimpleQueue[object] = SimpleQueue()
        self._process, self._channel = _started(module)
        self.pid = self._process.pid
        try:
            for target in (self._send, self._receive):
                threading.Thread(target=target, name=f"jrm-worker-{self.pid}", daemon=True).start()
        except RuntimeError as error:  # no more threads
            self._outbox.put(None)
            self._channel.close()
            raise StartFailed(f"{error}: it {self._reap()}") from None

    def send(self, message: object) -> None:
        """Send a message after those before it. Returns at once; nobody reads it if the process is gone."""
        self._outbox.put(message)

    async def ask(self, message: object, *, timeout_s: float) -> Any:
        """Send a message to a worker that starts, and wait for its answer.

        Raises StartFailed, with ``problems`` where the worker said what keeps it from starting; then it has ended.
        A process that is stopped meanwhile counts as one that takes long: nobody can tell what loading is doing.
        """
        self._asked = self._loop.create_future()
        if self.lost.done():
            raise StartFailed("it has ended")
        self.send(message)
        try:
            async with asyncio.timeout(timeout_s):
                return await self._asked
        except TimeoutError:
            await self.end()
            raise StartFailed(f"not ready after {timeout_s:g} s") from None
        except StartFailed:
            await self.end()
            raise

    async def end(self) -> None:
        """Kill the process. It holds nothing worth a goodbye."""
        self._outbox.put(None)
        self._channel.close()  # the receiving thread reads it as the end, whatever the process does, and kills it
        await asyncio.shield(self.lost)

    def _send(self) -> None:
        while (message := self._outbox.get()) is not None:
            try:
                self._channel.send(message)
            except OSError:
                return  # it is gone, as the receiving thread learns too
            del message  # an idle thread must not keep the last batch alive

    def _receive(self) -> None:
        with suppress(RuntimeError):  # the event loop is closed: nobody waits
            for message in self._messages():
                self._loop.call_soon_threadsafe(self._received, message)
            self._loop.call_soon_threadsafe(self._ended, self._reap())

    def _messages(self) -> Iterator[Any]:
        """What it sends until it ends. A message that cannot be read, for want of memory say, is the end as well."""
        while True:
            try:
                message = self._channel.receive()
            except EOFError:
                return
            except Exception:
                logger.exception("what worker process %d sent cannot be read", self.pid)
                return
            yield message

    def _reap(self) -> str:
        """Kill it if it still lives, and say how it ended. In the receiving thread, for it may take a moment."""
        self._process.kill()
        try:
            code = self._process.wait(_REAP_S)
        except subprocess.TimeoutExpired:  # in the kernel, where a signal does not reach it: a driver that hangs
            logger.error("worker process %d does not end", self.pid)
            return "does not end"
        return f"ended with status {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"

    def _received(self, message: Any) -> None:
        if isinstance(message, LogLine):
            logging.getLogger(message.name).log(message.level, "%s", message.message)
        elif self._asked is None or self._asked.done():
            self._on_message(message)
        elif isinstance(message, NotLoaded):
            self._asked.set_exception(StartFailed("; ".join(message.problems), message.problems))
        else:
            self._asked.set_result(message)

    def _ended(self, how: str) -> None:
        self.lost.set_result(None)
        if self._asked is not None and not self._asked.done():
            self._asked.set_exception(StartFailed(f"it {how} before it was ready"))
            self._asked.exception()  # read: whoever asked may have gone
        self._channel.close()
        self._on_end(how)


def _started(module: str) -> tuple[subprocess.Popen[bytes], Channel]:
    """A process, and our end of the channel to it. Raises StartFailed."""
    try:
        ours, theirs = socket.socketpair()
    except OSError as error:
        raise StartFailed(f"no channel to it: {error.strerror}") from None
    with theirs:
        try:
            process = subprocess.Popen(  # noqa: S603 - a fixed command
                [*_PYTHON, "-m", module, str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            raise StartFailed(f"no process for it: {error.strerror}") from None
    return process, Channel(ours)


async def patiently(start: Callable[[], Awaitable[T]], who: str) -> T:
    """What ``start`` returns, tried again after pauses. ``who`` is what is started, for the log.

    Raises StartFailed at once with ``problems``, which trying again does not solve, and when ``start`` has raised it
    MOST_FAILED_STARTS times in a row.
    """
    for pause in restart_pauses():
        await asyncio.sleep(pause)
        try:
            return await start()
        except StartFailed as error:
            if error.problems:
                raise
            logger.error("%s does not start: %s", who, error)
            failure = error
    raise failure
