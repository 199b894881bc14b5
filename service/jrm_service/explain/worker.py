"""The server's side of the worker process that writes critiques, with the interface of an engine."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from tempfile import TemporaryDirectory
from typing import Any

from jrm_service.device.child import Child
from jrm_service.scoring.backend import StartFailed

from .worker_messages import AnswerEnd, AnswerPiece, Cancel, CheckpointOpened, Generate, OpenCheckpoint, StartEngine
from .writer import EngineFailed, Piece, Prompt

MODULE = "jrm_service.model.explain_main"


class ExplainWorker:
    """Implements ``Engine`` with vLLM in a process of its own. Use from one event loop, which runs in the main thread.

    Args:
        opening: what the process opens, and how it runs.
        start_timeout_s: seconds that it may take to open the checkpoint, and then to start vLLM.
        module: the Python module that the process runs.
    """

    def __init__(self, opening: OpenCheckpoint, *, start_timeout_s: float, module: str = MODULE) -> None:
        self._opening = opening
        self._start_timeout_s = start_timeout_s
        self._module = module
        self._child: Child | None = None
        self._folder: TemporaryDirectory[str] | None = None  # of a process that was sent StartEngine
        self._numbers = itertools.count()
        self._answers: dict[int, asyncio.Queue[Piece | AnswerEnd]] = {}
        self._heard = 0.0

    async def open(self) -> CheckpointOpened:
        """Start the process, and return its description of the checkpoint. It takes hardly any memory yet.

        Raises StartFailed, with ``problems`` if critiques cannot be served here.
        """
        self._child = Child(self._module, self._received, self._ended)
        opened: CheckpointOpened = await self._child.ask(self._opening, timeout_s=self._start_timeout_s)
        return opened

    def expect(self, fingerprint: str) -> None:
        """Require that restarted processes serve this checkpoint, even if its folder has changed."""
        self._opening = replace(self._opening, hashed=True, fingerprint=fingerprint)

    async def start(self) -> None:
        """Start vLLM in the opened process, or in a new one if that has ended. Raises StartFailed."""
        if self._child is None or self._child.lost.done():
            await self.open()
        assert self._child is not None
        if self._folder is not None:
            self._folder.cleanup()
        try:
            self._folder = TemporaryDirectory(prefix="jrm-explain-", ignore_cleanup_errors=True)
        except OSError as error:
            raise StartFailed(f"the folder for its sockets could not be made: {error.strerror}") from None
        await self._child.ask(StartEngine(self._folder.name), timeout_s=self._start_timeout_s)

    @property
    def pid(self) -> int | None:
        """The id of the process that was started last."""
        return None if self._child is None else self._child.pid

    @property
    def lost(self) -> asyncio.Future[None]:
        """Done once the process has ended."""
        assert self._child is not None
        return self._child.lost

    @property
    def unfinished(self) -> int:
        """How many answers the process has not ended."""
        return len(self._answers)

    @property
    def silent_since(self) -> float | None:
        """When the process was last heard of, in the event loop's time; None while it owes no answer."""
        return self._heard if self._answers else None

    async def answer(
        self, prompt: Prompt, *, max_tokens: int, schema: Mapping[str, Any] | None
    ) -> AsyncGenerator[Piece]:
        """Answer greedily, as ``Writer.write`` says. Raises EngineFailed."""
        if self._child is None or self._child.lost.done():
            raise EngineFailed("the engine died")
        child, number = self._child, next(self._numbers)
        if not self._answers:
            self._heard = asyncio.get_running_loop().time()
        pieces = self._answers[number] = asyncio.Queue()
        child.send(Generate(number, prompt, max_tokens, schema))
        message: Piece | AnswerEnd | None = None
        try:
            while not isinstance(message := await pieces.get(), AnswerEnd):
                yield message
        finally:
            if not isinstance(message, AnswerEnd):
                child.send(Cancel(number))
        if message.failure is not None:
            raise EngineFailed(message.failure)

    async def end(self) -> None:
        """Kill the process, and vLLM's with it."""
        if self._child is not None:
            await self._child.end()

    def _received(self, message: Any) -> None:
        self._heard = asyncio.get_running_loop().time()
        match message:
            case AnswerPiece(number, piece):
                self._answers[number].put_nowait(piece)
            case AnswerEnd(number, _):
                self._answers.pop(number).put_nowait(message)

    def _ended(self, _how: str) -> None:
        answers, self._answers = self._answers, {}
        for number, pieces in answers.items():
            pieces.put_nowait(AnswerEnd(number, "the engine died"))
        if self._folder is not None:  # a process that was killed leaves its sockets behind
            self._folder.cleanup()
            self._folder = None
