"""The interface between the explain service and its engine: prompts, pieces of answers, ``Writer``. No vllm here."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

EngineState = Literal["loading", "ready", "restarting", "draining", "failed"]


class EngineFailed(Exception):
    """An engine could not answer; the message says why."""


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """Token ids with one image placeholder for each image, and the images in that order, uint8 [H, W, 3].

    ``tokens`` is the length that the model sees, every image's own tokens included.
    """

    ids: Sequence[int]
    images: Sequence[npt.NDArray[np.uint8]]
    tokens: int


@dataclass(frozen=True, slots=True)
class Piece:
    """The next text of an answer; the last piece has the reason why it ended and its total number of tokens."""

    text: str
    finish_reason: Literal["stop", "length"] | None = None
    tokens: int = 0


class Writer(Protocol):
    """A language head, wherever it runs."""

    def state(self) -> tuple[EngineState, str]:
        """Whether it answers, and if not, why."""
        ...

    def check(self) -> None:
        """Raise the ExplainUnavailable that ``write`` would raise."""
        ...

    def write(
        self, prompt: Prompt, *, max_tokens: int, schema: Mapping[str, Any] | None = None
    ) -> AsyncGenerator[Piece]:
        """Answer greedily; closing the iterator stops the work. With ``schema``, only JSON that it allows.

        Raises ExplainUnavailable when the engine is not running, or is lost while it writes.
        """
        ...
