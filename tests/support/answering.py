"""A program that asks vLLM about a checkpoint and prints what it answers: vLLM wants a process of its own."""

import asyncio
import json
import sys
from pathlib import Path

from jrm_service.explain.service import as_prompt
from jrm_service.explain.writer import Prompt
from jrm_service.model.checkpoint import open_checkpoint
from jrm_service.model.vllm_engine import EngineSettings, start_vllm
from jrm_service.scoring.preparing import CheckpointPreparer
from support.pictures import photo

SIZES = [((96, 80), (224, 224)), ((300, 40), (40, 200))]  # partial windows, whole ones, thin images
INSTRUCTION = "make it red"


def prompts(path: Path) -> list[Prompt]:
    checkpoint = open_checkpoint(path)
    preparer = CheckpointPreparer(checkpoint)
    dimension = next(iter(checkpoint.manifest.explain))
    asked = []
    for number, sizes in enumerate(SIZES):
        source, edited = (preparer.image(photo(*size, seed=2 * number + n)) for n, size in enumerate(sizes))
        sequence = preparer.question(dimension, [source], edited, INSTRUCTION)
        asked.append(as_prompt(sequence, checkpoint.config.image_token_id))
    return asked


async def answers(path: Path, tokens: int) -> list[str]:
    engine = start_vllm(EngineSettings(path, "cpu", "float32", 1024, 2, 0.5, 1))
    try:
        return [
            "".join([piece.text async for piece in engine.answer(prompt, max_tokens=tokens, schema=None)])
            for prompt in prompts(path)
        ]
    finally:
        engine._engine.shutdown()  # the worker has no use for it: it is killed


if __name__ == "__main__":
    print(json.dumps(asyncio.run(answers(Path(sys.argv[1]), int(sys.argv[2])))))
