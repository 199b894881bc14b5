"""Makes groups to score: random pictures, and edits of them that all differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image as PILImage

from jrm_service.scoring.backend import Preparer
from jrm_service.scoring.types import Candidate

INSTRUCTION = "make the red cup blue"
Pixels = npt.NDArray[np.uint8]
Source = PILImage.Image | tuple[PILImage.Image, ...] | None


@dataclass(frozen=True)
class Group:
    """One (source, instruction) and its edits, RGB images. ``source`` may be several, or None where there is none."""

    source: Source
    instruction: str
    edits: list[PILImage.Image]

    @property
    def sources(self) -> Sequence[PILImage.Image]:
        """All of them, in order."""
        if self.source is None:
            return ()
        return self.source if isinstance(self.source, tuple) else (self.source,)

    @property
    def pairs(self) -> list[tuple[Source, PILImage.Image, str]]:
        """(source, edited, instruction) of every edit."""
        return [(self.source, edit, self.instruction) for edit in self.edits]

    @property
    def singles(self) -> list[Group]:
        """Every edit as a group of its own."""
        return [Group(self.source, self.instruction, [edit]) for edit in self.edits]


class Pictures:
    """Endless groups, the same on every run, of which no two share an image, so that no cache has an effect.

    Images are ``side`` pixels square: blocks of random colour under fine noise, for noise alone would make all images
    look the same to a model. ``source``: whether groups have a source image, which not every checkpoint takes.
    """

    def __init__(self, side: int, *, seed: int = 0, source: bool = True) -> None:
        self._side = side
        self._source = source
        self._random = np.random.default_rng(seed)

    def group(self, edits: int) -> Group:
        """The next group."""
        source = self._image() if self._source else None
        return Group(source, INSTRUCTION, [self._image() for _ in range(edits)])

    def groups(self, number: int, edits: int) -> list[Group]:
        """The next ``number`` groups."""
        return [self.group(edits) for _ in range(number)]

    def _image(self) -> PILImage.Image:
        blocks = self._random.integers(0, 224, (8, 8, 3), np.uint8)
        at = np.arange(self._side) * 8 // self._side
        pixels: Pixels = blocks[at][:, at] + self._random.integers(0, 32, (self._side, self._side, 3), np.uint8)
        return PILImage.fromarray(pixels)


def prepare(preparer: Preparer, groups: Sequence[Group]) -> list[Candidate]:
    """Prepare groups as the server does before it queues them: images at the model's size, tokenized passes."""
    candidates = []
    for group in groups:
        sources = [preparer.image(source) for source in group.sources]
        candidates += [preparer.candidate(sources, preparer.image(edit), group.instruction) for edit in group.edits]
    return candidates
