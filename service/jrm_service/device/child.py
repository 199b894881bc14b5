"""One run of a worker process, from its start to its end, whatever its work is."""

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
_PYTHON = (sys.executable, "-P")  # -P: nothing is imported from the folder where the server was started


class Child:
    """A worker process, a thread that sends to it and one that receives from it.

    Create it in an event loop that runs in the main thread: a worker asks the kernel to kill it when the thread that
    started it ends, so that not even a stopped worker outlives a server that was killed. It has a session of its own,
    because Ctrl-C in a terminal is for the server, which drains before it ends its workers.

    Raises StartFailed if the machine cannot start another process.

    Args:
        module: the Python module that the process runs; it gets its end of the channel and the id of this process.
        received: called in the event loop with each message, except log lines and the reply that ``ask`` waits for.
        ended: called once in the event loop with how the process ended.
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
        """Send a message after the earlier ones. Returns at once; the message is lost if the process is gone."""
        self._outbox.put(message)

    async def ask(self, message: object, *, timeout_s: float) -> Any:
        """Send a message to a worker that is starting, and wait for its answer.

        Raises StartFailed, with ``problems`` if the worker gave its reasons; the process has ended then. A process that
        was stopped counts as slow: loading shows no progress.
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
        """Kill the process. It has no state that is worth a clean shutdown."""
        self._outbox.put(None)
        self._channel.close()  # the receiving thread reads it as the end, whatever the process does, and kills it
        await asyncio.shield(self.lost)

    def _send(self) -> None:
        while (message := self._outbox.get()) is not None:
            try:
                self._channel.send(message)
            except OSError:
                return  # the process is gone, and the receiving thread notices it too
            del message  # an idle thread must not keep the last batch alive

    def _receive(self) -> None:
        with suppress(RuntimeError):  # the event loop is closed: nobody is waiting
            for message in self._messages():
                self._loop.call_soon_threadsafe(self._received, message)
            self._loop.call_soon_threadsafe(self._ended, self._reap())

    def _messages(self) -> Iterator[Any]:
        """The process's messages until it ends. One that cannot be read, for lack of memory say, also ends it."""
        while True:
            try:
                message = self._channel.receive()
            except EOFError:
                return
            except Exception:
                logger.exception("a message from worker process %d cannot be read", self.pid)
                return
            yield message

    def _reap(self) -> str:
        """Kill the process if it still runs, and return how it ended. Called in the receiving thread: it may block."""
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
            self._asked.exception()  # marks it as retrieved: ``ask`` may have been cancelled
        self._channel.close()
        self._on_end(how)


def _started(module: str) -> tuple[subprocess.Popen[bytes], Channel]:
    """Start a process, and return it with our end of its channel. Raises StartFailed."""
    try:
        ours, theirs = socket.socketpair()
    except OSError as error:
        raise StartFailed(f"its channel could not be opened: {error.strerror}") from None
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
            raise StartFailed(f"its process could not be started: {error.strerror}") from None
    return process, Channel(ours)


async def start_with_retries(start: Callable[[], Awaitable[T]], who: str) -> T:
    """Call ``start``, again after pauses if it fails, and return its result. ``who`` names it in the log.

    Raises StartFailed at once if it has ``problems``, which a retry does not solve, and when ``start`` has raised it
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
