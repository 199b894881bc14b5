"""A worker process that writes critiques, ``python -m support.scripted_explainer``, without vLLM: it starts in seconds.

It says one word for each token that it may take; a few numbers of tokens mean something else.
"""

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

from jrm_service.device.channel import Channel
from jrm_service.explain.worker_messages import CheckpointOpened, OpenCheckpoint
from jrm_service.explain.writer import EngineFailed, Piece, Prompt
from jrm_service.model import explain_main, vllm_engine
from jrm_service.scoring.types import ServedModel

SLOW, FAIL, RAISE, SEGFAULT = 701, 702, 703, 704
NO_CHECKPOINT = "no checkpoint"
"""In place of a checkpoint's folder: nothing is opened, and the process starts in no time."""
REFUSES = "TEST_EXPLAINER_REFUSES"
"""An environment variable; while the file that it names is there, the engine does not start."""


class ScriptedEngine:
    """Answers at once, but for what the number of tokens means."""

    errored = False

    async def answer(
        self, prompt: Prompt, *, max_tokens: int, schema: Mapping[str, Any] | None
    ) -> AsyncGenerator[Piece]:
        if max_tokens == SLOW:
            yield Piece("slowly ", None, 1)
            await asyncio.Event().wait()
        elif max_tokens == FAIL:
            raise EngineFailed("the engine gave up: for a test")
        elif max_tokens == RAISE:
            raise RuntimeError("raised for a test")
        elif max_tokens == SEGFAULT:
            os.kill(os.getpid(), signal.SIGSEGV)
        for number in range(1, max_tokens):
            yield Piece("word ", None, number)
        yield Piece("end", "length", max_tokens)


_open = explain_main._open


def open_scripted(opening: OpenCheckpoint, channel: Channel) -> tuple[vllm_engine.EngineSettings | None, Prompt]:
    if opening.checkpoint != NO_CHECKPOINT:
        return _open(opening, channel)
    channel.send(CheckpointOpened(ServedModel("scripted", "scripted", {}), None, None, {}, 0, opening.context))
    return None, Prompt([], [], 0)


def start_scripted(_settings: vllm_engine.EngineSettings | None) -> ScriptedEngine:
    if (refuses := os.environ.get(REFUSES)) and Path(refuses).exists():
        raise RuntimeError("no memory for the cache")
    return ScriptedEngine()


if __name__ == "__main__":
    explain_main._open = open_scripted
    vllm_engine.start_vllm = start_scripted
    explain_main.main()
