"""Callers without an SDK: every refusal is seen, none is retried unless the caller means to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from jrm_client.protocol import TIMEOUT_HEADER

from .known_rewards import KnownGroup

_BOUNDARY = "a-boundary-that-no-picture-of-ours-holds"
_HEADERS = {"content-type": f"multipart/form-data; boundary={_BOUNDARY}"}
TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Reply:
    """What one request came to: HTTP status, seconds since it was due, when it ended, and the ``retry-after`` of it.

    ``wrong`` counts rewards that are not those of the candidates. Status 0: no reply.
    """

    status: int
    seconds: float
    ended: float
    retry_after: float | None = None
    wrong: int = 0


class RawCallers:
    """Requests of one group each, with ``edits`` candidates that nobody ever sent before, over raw HTTP.

    Use it as an asynchronous context manager.
    """

    def __init__(self, url: str, *, edits: int, side: int) -> None:
        self._edits, self._side = edits, side
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self._http = httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, limits=limits, trust_env=False)
        self._next = 0

    async def __aenter__(self) -> RawCallers:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    def group(self) -> KnownGroup:
        """The next one."""
        self._next += 1
        return KnownGroup(self._next, self._edits, self._side)

    async def send(self, group: KnownGroup, *, due: float | None = None, timeout_s: float = TIMEOUT_S) -> Reply:
        """Send it once. ``due`` is the moment from which time counts (the loop's clock); by default, now.

        ``timeout_s``: what the server may take, as the head and the body of the request say.
        """
        clock = asyncio.get_running_loop().time
        due = clock() if due is None else due
        headers = _HEADERS | {TIMEOUT_HEADER: str(int(timeout_s * 1000))}
        try:
            reply = await self._http.post("/v1/score", content=_body(group, timeout_s), headers=headers)
        except httpx.TransportError:
            return Reply(0, clock() - due, clock())
        ended = clock()
        wrong = _wrong(group, reply.json()) if reply.status_code == 200 else 0
        retry_after = reply.headers.get("retry-after")
        return Reply(reply.status_code, ended - due, ended, None if retry_after is None else float(retry_after), wrong)


def _body(group: KnownGroup, timeout_s: float) -> bytes:
    request = {
        "groups": [
            {
                "source": "part:source",
                "instruction": group.instruction,
                "edits": [f"part:edit-{number}" for number in range(group.edits)],
            }
        ],
        "timeout_ms": int(timeout_s * 1000),
    }
    parts = [_part('name="request"', json.dumps(request).encode()), _part('name="source"; filename="s"', group.source)]
    parts += [_part(f'name="edit-{n}"; filename="e"', edit) for n, edit in enumerate(group.edited)]
    return b"".join(parts) + f"--{_BOUNDARY}--\r\n".encode()


def _part(name: str, content: bytes) -> bytes:
    return f"--{_BOUNDARY}\r\ncontent-disposition: form-data; {name}\r\n\r\n".encode() + content + b"\r\n"


def _wrong(group: KnownGroup, body: dict[str, Any]) -> int:
    scores: Sequence[dict[str, Any]] = body["groups"][0]["scores"]
    return sum(score.get("reward") != reward for score, reward in zip(scores, group.rewards, strict=True))
