"""Work that takes long and cannot be stopped, such as loading a model, in threads that nobody has to wait for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


async def in_daemon_thread(work: Callable[[], T], discard: Callable[[T], object] = lambda _result: None) -> T:
    """The result of ``work``. Unlike asyncio's own threads, this one keeps no process from ending half-way.

    Cancelling the call leaves the work to itself; what it comes to is given to ``discard``, in a thread as well.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T) -> None:
        if future.done():
            threading.Thread(target=discard, args=(result,), name="jrm-discard", daemon=True).start()
        else:
            future.set_result(result)

    def fail(error: BaseException) -> None:
        if not future.done():
            future.set_exception(error)

    def run() -> None:
        try:
            result = work()
        except BaseException as error:
            with suppress(RuntimeError):  # the loop has ended: nobody waits
                loop.call_soon_threadsafe(fail, error)
            return
        try:
            loop.call_soon_threadsafe(settle, result)
        except RuntimeError:
            discard(result)

    threading.Thread(target=run, name="jrm-load", daemon=True).start()
    return await future
