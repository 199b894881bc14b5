"""Messages between the server and the worker process that writes critiques: how it starts, then what is asked of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jrm_service.images.preprocess import ImageSpec
from jrm_service.scoring.preparing import SequenceBuilder
from jrm_service.scoring.types import ServedModel

from .writer import Piece, Prompt


@dataclass(frozen=True, slots=True)
class Open:
    """To the worker, first of all: the checkpoint to open, and how its language head is to be run.

    ``devices`` are those of the server; critiques are written on the first. ``scorer``: whether it scores too.
    ``available`` is the host's free memory in bytes before anything was loaded, ``gpu_share`` the part of the GPU's
    memory that vLLM may use, ``cache_gib`` the size of its cache on a CPU in GiB; ``context`` the longest sequence,
    answer included, and ``concurrency`` how many are written at once. ``hashed``: whether it is to work out the
    fingerprint, which must be ``fingerprint`` where that is known already.
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
class Opened:
    """From the worker: the checkpoint can be explained here. It waits for Begin with what takes memory.

    ``model`` has no fingerprint where it was not to be hashed. ``image_spec`` and ``builder`` are what the server
    prepares questions with; ``dimensions`` says of each that can be asked for whether its critique has regions;
    ``placeholder`` is the token id that stands for an image; ``context`` is at most the model's.
    """

    model: ServedModel
    image_spec: ImageSpec
    builder: SequenceBuilder
    dimensions: Mapping[str, bool]
    placeholder: int
    context: int


@dataclass(frozen=True, slots=True)
class Begin:
    """To the worker: start vLLM, whose processes put their sockets into ``folder``."""

    folder: str


@dataclass(frozen=True, slots=True)
class Begun:
    """From the worker: vLLM has answered for the first time."""


@dataclass(frozen=True, slots=True)
class Ask:
    """To the worker: a prompt to be answered, as ``Writer.write`` says. ``number`` is its own for good."""

    number: int
    prompt: Prompt
    max_tokens: int
    schema: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Cancel:
    """To the worker: nobody waits for this answer any more."""

    number: int


@dataclass(frozen=True, slots=True)
class Said:
    """From the worker: some more of an answer."""

    number: int
    piece: Piece


@dataclass(frozen=True, slots=True)
class Ended:
    """From the worker: nothing more comes of this answer. ``failure`` is why, unless it was finished or cancelled."""

    number: int
    failure: str | None
