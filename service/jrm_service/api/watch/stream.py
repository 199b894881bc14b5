"""The server-sent events of one reader of /v1/watch: kept groups, new groups, and the window of rewards."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, suppress
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from jrm_service.api.access_log import hang_up_of

from .recorder import Recorder

KEEPALIVE_S = 15.0
WINDOW_S = 1.0
STALLED_S = 60.0
_HEADERS = {
    "cache-control": "no-store",
    "x-accel-buffering": "no",  # proxies must not collect events
    "connection": "close",  # nothing comes after the stream, so that it can be ended by hanging up
}


class EventStream(StreamingResponse):
    """Events that are sent as fast as the reader takes them; a reader that takes none for a minute is disconnected.

    ``held`` is closed when the stream ends, for whatever reason.
    """

    def __init__(self, events: AsyncIterator[str], held: ExitStack, *, stalled_s: float = STALLED_S) -> None:
        super().__init__(events, media_type="text/event-stream", headers=_HEADERS)
        self._held = held
        self._stalled_s = stalled_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102 - ASGI
        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(self._stalled_s):
                await send(message)

        with self._held, suppress(ClientDisconnect):
            try:
                await super().__call__(scope, receive, send_in_time)
            except TimeoutError:
                hang_up_of(scope)()
                await asyncio.sleep(0)  # lets uvicorn see the closed connection, or it would miss the end of the reply


async def events(
    recorder: Recorder,
    changed: asyncio.Event,
    hello: dict[str, Any],
    *,
    after: int,
    run: str,
    goes_on: Callable[[], bool] = lambda: True,
    window_s: float = WINDOW_S,
    keepalive_s: float = KEEPALIVE_S,
) -> AsyncIterator[str]:
    """The events of one reader, until the recorder closes or the reader may have no more.

    Args:
        recorder: has the groups and the window.
        changed: is set when there may be something new.
        hello: the first event.
        after: the number of the last group that the reader has.
        goes_on: whether the reader may have more; checked before each event, and at each keepalive.
        run: identifies this process in the ids of groups, since every process counts from 1.
        window_s: the shortest time between two ``window`` events.
        keepalive_s: after this long without an event, a comment is sent.
    """
    loop = asyncio.get_running_loop()
    yield _event("hello", _json(hello))
    shown_groups, next_window, sent_at = -1, loop.time(), loop.time()
    kept_before = recorder.store.newest  # these are sent before the first window
    while goes_on() and not recorder.closed:
        changed.clear()
        group = recorder.store.after(after)
        moved = recorder.window.groups != shown_groups
        if moved and loop.time() >= next_window and (group is None or group.number > kept_before):
            now = await recorder.window_event()
            shown_groups = now.groups
            yield _event("window", now.json)
            next_window = loop.time() + window_s
        elif group is not None:
            if after and group.number > after + 1:
                yield _event("missed", _json({"groups": group.number - after - 1}))
            after = group.number
            yield f"id: {run}-{group.number}\nevent: group\ndata: {group.event}\n\n"
        elif loop.time() >= sent_at + keepalive_s:
            yield ": keepalive\n\n"
        else:
            wake_at = sent_at + keepalive_s
            with suppress(TimeoutError):
                async with asyncio.timeout_at(min(wake_at, next_window) if moved else wake_at):
                    await changed.wait()
            continue
        sent_at = loop.time()


def resumed(last_event_id: str, run: str, newest: int) -> int:
    """The number of the last group that a reader has, from its ``Last-Event-ID``; 0 if it is not of this run."""
    match = re.fullmatch(rf"{re.escape(run)}-([0-9]{{1,18}})", last_event_id)
    number = 0 if match is None else int(match[1])
    return number if number <= newest else 0


def _json(document: dict[str, Any]) -> str:
    return json.dumps(document, separators=(",", ":"))


def _event(name: str, data: str) -> str:
    return f"event: {name}\ndata: {data}\n\n"
