"""Writers whose answers a test decides: for what a real engine does not do on demand."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from jrm_service.errors import ExplainUnavailable
from jrm_service.explain.writer import EngineState, Piece, Prompt


class ScriptedWriter:
    """Yields ``pieces`` for every prompt; an exception among them is raised, an event is waited for."""

    def __init__(self, *pieces: Piece | Exception | asyncio.Event) -> None:
        self.pieces = pieces
        self.asked: list[tuple[Prompt, int, Mapping[str, Any] | None]] = []
        self.writing = 0
        self.up = True
        self.started = asyncio.Event()

    def state(self) -> tuple[EngineState, str]:
        return ("ready", "") if self.up else ("restarting", "it died")

    def check(self) -> None:
        if not self.up:
            raise ExplainUnavailable("no critiques now: it died", retry_after=7)

    async def write(
        self, prompt: Prompt, *, max_tokens: int, schema: Mapping[str, Any] | None = None
    ) -> AsyncGenerator[Piece]:
        self.check()
        self.asked.append((prompt, max_tokens, schema))
        self.writing += 1
        self.started.set()
        try:
            for piece in self.pieces:
                if isinstance(piece, Exception):
                    raise piece
                if isinstance(piece, asyncio.Event):
                    await piece.wait()
                else:
                    yield piece
        finally:
            self.writing -= 1
