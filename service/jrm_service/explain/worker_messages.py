"""The messages between the server and the worker process that writes critiques: its start, then prompts and answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jrm_service.images.preprocess import ImageSpec
from jrm_service.scoring.preparing import SequenceBuilder
from jrm_service.scoring.types import ServedModel

from .writer import Piece, Prompt


@dataclass(frozen=True, slots=True)
class OpenCheckpoint:
    """The first message to the worker: the checkpoint to open, and how to run its language head.

    ``devices`` are those of the server; critiques are written on the first. ``scorer``: whether it scores too.
    ``available`` is the host's free memory in bytes before anything was loaded, ``gpu_share`` the share of the GPU's
    memory that vLLM may use, ``cache_gib`` the size of its cache on a CPU in GiB; ``context`` the longest sequence,
    answer included, and ``concurrency`` how many are written at once. ``hashed``: whether it computes the fingerprint,
    which must be ``fingerprint`` if that is known already.
    """

    checkpoint: str | None
    devices: Sequence[str]
    dtype: str
    allow_pipeline_drift: bool
    context: int
    concurrency: int
    gpu_share: float
    cache_gib: float
    scorer: bool
    available: int | None
    hashed: bool
    fingerprint: str | None = None


@dataclass(frozen=True, slots=True)
class CheckpointOpened:
    """From the worker: this checkpoint can be explained here. Only ``StartEngine`` makes it take memory.

    ``model`` has no fingerprint unless it was ``hashed``. The server prepares questions with ``image_spec`` and
    ``builder``; ``dimensions`` maps each dimension to whether its critique has regions; ``placeholder`` is the token id
    that stands for an image; ``context`` is at most the model's.
    """

    model: ServedModel
    image_spec: ImageSpec
    builder: SequenceBuilder
    dimensions: Mapping[str, bool]
    placeholder: int
    context: int


@dataclass(frozen=True, slots=True)
class StartEngine:
    """To the worker: start vLLM, whose processes put their sockets into ``folder``."""

    folder: str


@dataclass(frozen=True, slots=True)
class EngineStarted:
    """From the worker: vLLM has answered for the first time."""


@dataclass(frozen=True, slots=True)
class Generate:
    """To the worker: a prompt to be answered, as ``Writer.write`` says. ``number`` is unique."""

    number: int
    prompt: Prompt
    max_tokens: int
    schema: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Cancel:
    """To the worker: nobody waits for this answer any more."""

    number: int


@dataclass(frozen=True, slots=True)
class AnswerPiece:
    """From the worker: the next piece of an answer."""

    number: int
    piece: Piece


@dataclass(frozen=True, slots=True)
class AnswerEnd:
    """From the worker: the end of an answer. ``failure`` is the reason, unless it was finished or cancelled."""

    number: int
    failure: str | None
