"""A worker process that writes critiques, ``python -m support.scripted_critic``: always the same one, in small pieces.

Every dimension gets the same words; where it has no regions, its tags are left out of what callers read.
"""

import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from jrm_service.explain.writer import Piece, Prompt
from jrm_service.model import explain_main, vllm_engine

REASONING = (
    "<|global|> Mostly as asked. <|bbox_0|> The square is blue <b>now</b>. <|bbox_1|> The circle has become smaller."
)
REGIONS = [
    {"id": 0, "label": "blue square", "bbox_2d": [100, 130, 430, 460]},
    {"id": 1, "label": "<i>circle</i>", "bbox_2d": [560, 120, 920, 470]},
]
_PIECE = 7


class ScriptedCritic:
    """Writes the critique as fast as it is read."""

    errored = False

    async def answer(
        self, prompt: Prompt, *, max_tokens: int, schema: Mapping[str, Any] | None
    ) -> AsyncGenerator[Piece]:
        regions = schema is None or "edit_region" in schema["properties"]
        text = json.dumps({"reasoning": REASONING, "edit_region": REGIONS} if regions else {"reasoning": REASONING})
        pieces = [text[start : start + _PIECE] for start in range(0, len(text), _PIECE)]
        for number, piece in enumerate(pieces, 1):
            yield Piece(piece, "stop" if number == len(pieces) else None, number)


def start_scripted(_settings: vllm_engine.EngineSettings) -> ScriptedCritic:
    return ScriptedCritic()


if __name__ == "__main__":
    vllm_engine.start_vllm = start_scripted
    explain_main.main()
