"""A private event loop on a thread, so that synchronous callers share one implementation with asynchronous ones."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import enum
import os
import queue
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")

_CLOSED = "this client is closed"
_all: weakref.WeakSet[LoopThread] = weakref.WeakSet()
_inherited: list[object] = []


class _End(enum.Enum):
    """Follows the last item of an iterator."""

    END = enum.auto()


class LoopThread:
    """Runs coroutines for callers in any thread, also one whose own event loop is running (Jupyter).

    The thread starts with the first call and is a daemon: it never keeps the interpreter alive, and is stopped at exit.
    After ``os.fork`` the child starts afresh. ``cleanup`` is awaited on the loop before it ends; it must not refer
    to this object, which would otherwise never be collected.
    """

    def __init__(self, cleanup: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._cleanup = cleanup
        self._closed = False
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: weakref.finalize[Any, LoopThread] | None = None
        _all.add(self)

    def run(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run ``call()`` and return or raise what it does. Ctrl-C cancels it. Raises RuntimeError once closed."""
        future = self._submit(call)
        try:
            return _result(future)
        except BaseException:
            future.cancel()  # without effect when the call itself raised
            raise

    def iterate(self, source: AsyncGenerator[T, None]) -> Generator[T, None, None]:
        """Yield what ``source`` yields; it starts when the first item is asked for, and may run ahead of the caller.

        Closing the iterator, leaving its loop or Ctrl-C closes ``source``. Raises what ``source`` raises, after its
        items, and RuntimeError once this is closed.
        """
        items: queue.SimpleQueue[T | _End] = queue.SimpleQueue()

        async def pump() -> None:
            async with contextlib.aclosing(source):
                async for item in source:
                    items.put(item)

        future = self._submit(pump)
        future.add_done_callback(lambda _: items.put(_End.END))
        try:
            while (item := items.get()) is not _End.END:
                yield item
            _result(future)
        finally:
            future.cancel()  # without effect when it is done

    def close(self) -> None:
        """Cancel what runs, await ``cleanup`` and end the thread. Closing twice is fine."""
        with self._lock:
            self._closed = True
            self._loop = None
            if self._stop is not None:
                self._stop()

    def _submit(self, call: Callable[[], Coroutine[Any, Any, T]]) -> concurrent.futures.Future[T]:
        with self._lock:
            if self._closed:
                raise RuntimeError(_CLOSED)
            if self._loop is None:
                self._loop = self._start()
            return asyncio.run_coroutine_threadsafe(call(), self._loop)

    def _start(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=_serve, args=(loop, self._cleanup), name="jrm-client", daemon=True)
        thread.start()
        # Runs when this object is closed or collected, or the interpreter exits, whichever comes first.
        self._stop = weakref.finalize(self, _stop, loop, thread)
        return loop

    def _forget_parent(self) -> None:
        # The loop shares its selector and sockets with the parent: the child must not stop, close or collect it.
        if self._stop is not None:
            self._stop.detach()
        _inherited.append((self._loop, self._stop))
        self._lock, self._loop, self._stop = threading.Lock(), None, None


def _result(future: concurrent.futures.Future[T]) -> T:
    try:
        return future.result()
    except concurrent.futures.CancelledError:
        raise RuntimeError(f"{_CLOSED}: it was closed during the call") from None


def _serve(loop: asyncio.AbstractEventLoop, cleanup: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.run_until_complete(cleanup())
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        # Not shutdown_default_executor(): it starts a thread, which is forbidden when the interpreter is exiting.
        loop.close()


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    if thread.is_alive():
        loop.call_soon_threadsafe(loop.stop)
        if thread is not threading.current_thread():
            thread.join()


def _after_fork_in_child() -> None:
    for loop_thread in _all:
        loop_thread._forget_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
