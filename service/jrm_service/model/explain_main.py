"""The worker process that writes critiques: it opens a checkpoint, starts vLLM, and answers until its server ends.

``python -m jrm_service.model.explain_main FD PID``, started only by ``explain.worker``. FD is its end of the channel
to the server with the process id PID.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from contextlib import aclosing
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NoReturn

from .worker_process import DEVICE_LOST, connect, end_with_parent, give_up, require_same

if TYPE_CHECKING:
    from jrm_service.device.channel import Channel
    from jrm_service.explain.worker_messages import Generate, OpenCheckpoint
    from jrm_service.explain.writer import Prompt

    from .vllm_engine import EngineSettings, VLLMEngine

logger = logging.getLogger(__name__)

_WATCH_SECONDS = 0.25

if __name__ == "__mp_main__":
    # multiprocessing runs this module under that name at the start of each process that vLLM spawns here. A process of
    # vLLM's that is stopped, or busy on its device, would otherwise outlive this one and keep its memory.
    end_with_parent()


def main() -> None:
    """Answer the messages of the channel. The process ends with its server, for whatever reason that ends."""
    channel = connect()
    inbox: SimpleQueue[Any] = SimpleQueue()
    # Started before anything is loaded, so that the process also ends with its server during loading.
    threading.Thread(target=_receive, args=(channel, inbox), name="jrm-receive", daemon=True).start()
    try:
        settings, first = _open(inbox.get(), channel)
        os.environ["VLLM_RPC_BASE_PATH"] = inbox.get().folder
        # In this thread, which lives as long as the process does: vLLM's own processes end with it.
        asyncio.run(_answer_all(settings, first, inbox, channel))
    except Exception as error:
        give_up(channel, error)


def _receive(channel: Channel, inbox: SimpleQueue[Any]) -> None:
    try:
        while True:
            inbox.put(channel.receive())
    finally:
        os._exit(0)  # the server is gone; the main thread may be anywhere


def _open(opening: OpenCheckpoint, channel: Channel) -> tuple[EngineSettings, Prompt]:
    from jrm_service.explain.worker_messages import CheckpointOpened

    from .checkpoint import open_checkpoint
    from .checkpoint_source import BUNDLED, CheckpointSource
    from .explain_setup import first_question, require_memory
    from .preprocessing_version import require_pinned
    from .vllm_engine import EngineSettings

    require_pinned(allow_drift=opening.allow_pipeline_drift)
    checkpoint = open_checkpoint(BUNDLED if opening.checkpoint is None else Path(opening.checkpoint))
    source = CheckpointSource(checkpoint, opening.devices, opening.dtype, "vllm", None)
    device = source.devices[0]
    context = min(opening.context, checkpoint.config.text_config.max_position_embeddings)
    require_memory(
        checkpoint,
        device,
        dtype=source.dtype,
        context=context,
        share=opening.gpu_share,
        cache_gib=opening.cache_gib,
        scorer=opening.scorer,
        available=opening.available,
    )
    require_same(checkpoint, opening.fingerprint)
    first = first_question(checkpoint)
    channel.send(
        CheckpointOpened(
            source.described(hashed=opening.hashed, engine="vllm"),
            checkpoint.image_spec,
            checkpoint.builder,
            checkpoint.manifest.explained,
            int(checkpoint.config.image_token_id),
            context,
        )
    )
    settings = EngineSettings(
        path=checkpoint.path,
        device=device,
        dtype=source.dtype,
        context=context,
        concurrency=opening.concurrency,
        gpu_share=opening.gpu_share,
        cache_gib=opening.cache_gib,
        images=checkpoint.manifest.max_sources + 1,
    )
    return settings, first


async def _answer_all(settings: EngineSettings, first: Prompt, inbox: SimpleQueue[Any], channel: Channel) -> NoReturn:
    from jrm_service.explain.worker_messages import AnswerEnd, Cancel, EngineStarted, Generate

    from .vllm_engine import start_vllm

    engine = start_vllm(settings)
    # One answer to warm the kernels up, and to find out that vLLM works before the first caller does.
    async with aclosing(engine.answer(first, max_tokens=2, schema=None)) as pieces:
        async for _ in pieces:
            pass
    channel.send(EngineStarted())
    writing: dict[int, asyncio.Task[str | None]] = {}

    def ended(number: int, answered: asyncio.Task[str | None]) -> None:
        del writing[number]
        channel.send(AnswerEnd(number, None if answered.cancelled() else answered.result()))

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_end_with(engine))
        while True:
            match await asyncio.to_thread(inbox.get):
                case Generate(number) as request:
                    writing[number] = tasks.create_task(_answer(engine, request, channel))
                    writing[number].add_done_callback(partial(ended, number))
                case Cancel(number) if number in writing:
                    writing[number].cancel()


async def _answer(engine: VLLMEngine, request: Generate, channel: Channel) -> str | None:
    """Send the pieces of an answer. Returns the reason if it could not be finished."""
    from jrm_service.explain.worker_messages import AnswerPiece
    from jrm_service.explain.writer import EngineFailed

    try:
        async with aclosing(
            engine.answer(request.prompt, max_tokens=request.max_tokens, schema=request.schema)
        ) as pieces:
            async for piece in pieces:
                channel.send(AnswerPiece(request.number, piece))
    except EngineFailed as failure:
        return str(failure)
    except Exception:
        logger.exception("a critique could not be written")
        return "the engine could not answer"
    return None


async def _end_with(engine: VLLMEngine) -> None:
    """End the process when vLLM dies: it cannot be restarted in the same process, so the server starts another."""
    while not engine.errored:  # noqa: ASYNC110 - vLLM has no event for it
        await asyncio.sleep(_WATCH_SECONDS)
    logger.error("vLLM's engine has died")
    os._exit(DEVICE_LOST)


if __name__ == "__main__":
    main()
