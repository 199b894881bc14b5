"""The interfaces between the batcher, a worker, and a model's backend and preparer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

from PIL import Image as PILImage

from jrm_service.errors import CandidateError

from .types import Candidate, Image, Score

BatchT = TypeVar("BatchT")

SleepLevel = Literal["host", "drop"]
"""What happens to a sleeping worker's weights: "host" moves them to host memory, "drop" has them loaded again later."""


class WorkerLost(Exception):
    """The device is gone (a sticky CUDA error, a dead process), not just the batch: its worker is restarted."""


class StartFailed(Exception):
    """A worker could not be started. ``problems``: permanent reasons, such as those of its checkpoint, one a line."""

    def __init__(self, why: str, problems: Sequence[str] = ()) -> None:
        super().__init__(why)
        self.problems = list(problems)


class OutOfMemory(Exception):
    """A batch needs more memory than its device has left. The device itself is fine.

    Before a backend raises it, the batch's memory and everything that was only kept for speed is released.
    """


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What a backend returns for one batch.

    ``outcomes`` has one entry per candidate, in order: a score, or that candidate's own error. ``tokens_computed``
    counts the language-model tokens that were computed for the whole batch, ``images_encoded`` the images that went
    through the vision tower, ``images_reused`` those whose features were kept from before, and ``feature_bytes`` the
    device memory of all kept features.
    """

    outcomes: list[Score | CandidateError]
    tokens_computed: int
    images_encoded: int = 0
    images_reused: int = 0
    feature_bytes: int = 0


@dataclass(frozen=True, slots=True)
class WorkerResult:
    """What a worker returns for one batch: ``seconds`` on its device, and how often the backend raised on the way."""

    scored: BatchResult
    seconds: float
    failures: int = 0


class Worker(Protocol):
    """One device, in this process or in one of its own. Batches are scored in the order in which they arrive."""

    device: str

    async def start(self) -> None:
        """Start the device, for the first time or again; returns when it accepts batches. Raises StartFailed."""
        ...

    async def score(self, candidates: Sequence[Candidate]) -> WorkerResult:
        """Score one batch. Several may be in progress: the next is built while one is on the device.

        Raises WorkerLost when no answer will come. Any other failure is the outcome of a candidate.
        """
        ...

    @property
    def lost(self) -> asyncio.Future[None]:
        """Done once the device that was started last is gone."""
        ...

    async def sleep(self) -> None:
        """Release the device after the earlier batches, and keep the weights in host memory. Raises WorkerLost."""
        ...

    async def wake(self) -> None:
        """After ``sleep``: take the device again and score as before. Raises WorkerLost."""
        ...

    async def end(self, *, patience_s: float = 0.0) -> None:
        """Release the device, whatever it is doing; running batches get ``patience_s`` seconds to finish."""
        ...


class Preparer(Protocol):
    """Turns decoded images and instructions into candidates. Pure CPU work; safe to call from many threads at once."""

    def image(self, rgb: PILImage.Image) -> Image:
        """Resize an RGB image to what the model sees. Raises ImageTooLarge for an aspect ratio over 200."""
        ...

    @property
    def most_image_bytes(self) -> int:
        """The largest size of ``Image.pixels``, in bytes."""
        ...

    @property
    def max_sources(self) -> int:
        """The most source images of a candidate. 0: it has none; otherwise it has at least one."""
        ...

    def candidate(self, sources: Sequence[Image], edited: Image, instruction: str) -> Candidate:
        """Tokenize every pass.

        Raises InstructionTooLong when a sequence exceeds the model's context, ValueError for a number of sources that
        the model does not take.
        """
        ...


class Backend(Protocol, Generic[BatchT]):
    """Scores batches on one device. One thread calls ``score``; ``collate`` may run in another thread ahead of it."""

    device: str

    def collate(self, candidates: Sequence[Candidate]) -> BatchT:
        """Build the device inputs of a batch. Host work only: it overlaps with the batch that is running."""
        ...

    def score(self, batch: BatchT) -> BatchResult:
        """Run the model. A NaN stays in its own candidate's score.

        An exception means that the whole batch failed: it is collated and scored again in halves, until only the
        candidates that make the backend raise by themselves are left. Raises OutOfMemory when a smaller batch might
        fit, and WorkerLost when trying again on this device is pointless.
        """
        ...


class SleepingBackend(Backend[BatchT], Protocol[BatchT]):
    """A backend whose weights can leave the device for a while. Nothing is scored between ``sleep`` and ``wake``."""

    def sleep(self) -> None:
        """Move the weights to host memory and free everything on the device."""
        ...

    def wake(self) -> None:
        """Move the weights back: scores are bitwise the same as before. Raises OutOfMemory, WorkerLost."""
        ...
