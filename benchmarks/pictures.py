"""Groups to score: windows of a photograph, and edits of them that all differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from jrm_service.bench.pictures import INSTRUCTION, Group

PHOTO = Path(__file__).parents[1] / "examples" / "photo.jpg"
Pixels = npt.NDArray[np.uint8]


class Pictures:
    """Endless groups, the same on every run, of which no two share an image: nothing is ever served from a cache.

    Images are ``side`` pixels square. An edit is its source with a tinted square somewhere and a little noise.
    """

    def __init__(self, side: int, *, seed: int = 0) -> None:
        with Image.open(PHOTO) as file:
            self._photo = np.asarray(file.convert("RGB").resize((side, side), Image.Resampling.BICUBIC))
        self._random = np.random.default_rng(seed)

    def group(self, edits: int) -> Group:
        """The next group: a shifted photograph with a little noise, and its edits."""
        random, photo = self._random, self._photo
        shifted = np.roll(photo, random.integers(0, photo.shape[0], 2), axis=(0, 1))
        source = shifted ^ random.integers(0, 2, photo.shape, np.uint8)
        return Group(Image.fromarray(source), INSTRUCTION, [Image.fromarray(self._edit(source)) for _ in range(edits)])

    def _edit(self, source: Pixels) -> Pixels:
        edited = source + self._random.normal(0, 4, source.shape)
        side = source.shape[0] // 3
        y, x = self._random.integers(0, source.shape[0] - side, 2)
        edited[y : y + side, x : x + side] *= self._random.uniform(0.2, 1.0, 3)
        return edited.clip(0, 255).astype(np.uint8)
