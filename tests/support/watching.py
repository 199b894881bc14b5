"""A reader of ``GET /v1/watch``."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx


@dataclass(frozen=True)
class Event:
    """``name`` is empty for a comment."""

    name: str
    data: Any
    id: str | None = None


def parsed(block: str) -> Event:
    """One event, without the blank line that ends it."""
    if block.startswith(":"):
        return Event("", block[1:].strip())
    fields = dict(line.split(": ", 1) for line in block.splitlines())
    assert set(fields) <= {"id", "event", "data"}, block
    return Event(fields["event"], json.loads(fields["data"]), fields.get("id"))


@contextlib.contextmanager
def watching(url: str, *, secret: str | None = None, after: str | None = None) -> Iterator[Iterator[Event]]:
    """The events of a stream as they come, to the end of the block; ``after`` is the id of the last group one has."""
    headers = {"authorization": f"Bearer {secret}"} if secret else {}
    headers |= {"last-event-id": after} if after else {}
    with httpx.stream("GET", f"{url}/v1/watch", headers=headers, timeout=60) as reply:
        assert reply.status_code == 200, reply.read()
        assert reply.headers["content-type"].startswith("text/event-stream")
        yield _events(reply)


def _events(reply: httpx.Response) -> Iterator[Event]:
    lines: list[str] = []
    for line in reply.iter_lines():
        if line:
            lines.append(line)
        elif lines:
            yield parsed("\n".join(lines))
            lines = []


def groups(events: Iterator[Event], count: int) -> list[Event]:
    """The next so many groups, whatever comes between them."""
    found: list[Event] = []
    while len(found) < count:
        event = next(events)
        if event.name == "group":
            found.append(event)
    return found
