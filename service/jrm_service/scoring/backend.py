"""The small interface between the service and a model: everything the queue knows of a backend is here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from PIL import Image as PILImage

from jrm_service.errors import CandidateError

from .types import Candidate, Image, Score

BatchT = TypeVar("BatchT")


class WorkerLost(Exception):
    """A backend raises this when its device is gone for good (a sticky CUDA error, a dead process), not just the batch.

    Its worker takes no more work; the candidates that it held are retried once on another worker.
    """


class OutOfMemory(Exception):
    """A backend raises this when a batch needs more memory than its device has left. The device itself is fine.

    Before it is raised, everything that the batch held and everything that was only kept for speed is released.
    """


@dataclass(frozen=True, slots=True)
class Scored:
    """What a backend returns for one batch.

    ``outcomes`` has one entry per candidate, in order: a score, or the typed error of that candidate alone.
    ``tokens_computed`` counts the language-model tokens that were really run for the whole batch, ``images_encoded``
    the images that went through the vision tower for it, ``images_reused`` those whose features were there already, and
    ``feature_bytes`` what all kept features take on the device now.
    """

    outcomes: list[Score | CandidateError]
    tokens_computed: int
    images_encoded: int = 0
    images_reused: int = 0
    feature_bytes: int = 0


class Preparer(Protocol):
    """Turns decoded images and instructions into candidates. Pure CPU work; safe to call from many threads at once."""

    def image(self, rgb: PILImage.Image) -> Image:
        """Resize an RGB image to what the model sees. Raises ImageTooLarge for an aspect ratio over 200."""
        ...

    def image_bytes(self, width: int, height: int) -> int:
        """Bytes of ``Image.pixels`` for an image of that size in pixels. Raises as ``image`` does."""
        ...

    def candidate(self, source: Image, edited: Image, instruction: str) -> Candidate:
        """Tokenize every pass. Raises InstructionTooLong when a sequence exceeds the model's context."""
        ...


class Backend(Protocol, Generic[BatchT]):
    """Scores batches on one device. One thread calls ``score``; ``collate`` may run in another thread ahead of it."""

    device: str

    def collate(self, candidates: Sequence[Candidate]) -> BatchT:
        """Build the device inputs of a batch. Host work only: it overlaps with the batch that is running."""
        ...

    def score(self, batch: BatchT) -> Scored:
        """Run the model. A NaN stays in its own candidate's score.

        An exception means that the whole batch failed: it is collated and scored again in halves, until only the
        candidates that make the backend raise by themselves are left. Raises OutOfMemory when a smaller batch might
        fit, and WorkerLost when trying again on this device is pointless.
        """
        ...
