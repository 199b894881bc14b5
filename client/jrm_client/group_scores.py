"""The scores of one group: rewards as an array, win probabilities, and a table for a notebook."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from . import html_report
from .arguments import integer
from .probability import win_probability
from .results import Dimension, Score


@dataclass(frozen=True, slots=True)
class GroupScores:
    """The scores of one group, in the order of its edits. Has a length, can be indexed and iterated.

    A notebook shows it as a table, best first. ``pictures``, which only that table uses, are set by calls with
    ``keep_images``.
    """

    scores: tuple[Score, ...]
    pictures: html_report.Pictures | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Score]:
        return iter(self.scores)

    def __getitem__(self, index: int) -> Score:
        return self.scores[index]

    @property
    def rewards(self) -> npt.NDArray[np.float32]:
        """The rewards, float32 [G]. NaN where the candidate failed (``on_error="nan"``)."""
        return np.array([score.reward for score in self.scores], dtype=np.float32)

    def dimension(self, name: str) -> npt.NDArray[np.float32]:
        """Return the means of one dimension, float32 [G]. Raises KeyError for a name that the checkpoint lacks."""
        return np.array([self._dimension(index, name).mean for index in range(len(self.scores))], dtype=np.float32)

    def win_probability(self, i: int, j: int, dimension: str | None = None) -> float:
        """Return the probability that edit ``i`` is better than edit ``j`` (Eq. 4), for two independent ratings.

        On the mean and std of ``dimension``, or on the reward and its std; without std, sigmoid(r_i - r_j). It is 0.5
        for i == j and NaN if either has no score. Raises KeyError for an unknown dimension, IndexError for an index.
        """
        i, j = self._index(i, "i"), self._index(j, "j")
        if dimension is None:
            a, b = self.scores[i], self.scores[j]
            return win_probability(a.reward, a.reward_std, b.reward, b.reward_std)
        first, second = self._dimension(i, dimension), self._dimension(j, dimension)
        return win_probability(first.mean, first.std, second.mean, second.std)

    def _repr_html_(self) -> str:
        """Return what a notebook shows: a table of the edits, best first."""
        return html_report.fragment(self.scores, self.pictures)

    def _index(self, value: int, name: str) -> int:
        index = integer(value, name)
        if not -len(self.scores) <= index < len(self.scores):
            raise IndexError(f"{name}={index}: this group has {len(self.scores)} scores")
        return index

    def _dimension(self, index: int, name: str) -> Dimension:
        if not isinstance(name, str):
            raise TypeError(f"dimension: {type(name).__name__}; expected a name")
        dimensions = self.scores[index].dimensions
        try:
            return dimensions[name]
        except KeyError:
            raise KeyError(f"no dimension {name!r}; this checkpoint has {', '.join(sorted(dimensions))}") from None
