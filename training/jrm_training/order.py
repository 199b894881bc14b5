"""Which groups are in each row of a run: depends only on recipe and step, so that a resumed run sees the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from .config import Recipe


def steps_of(recipe: Recipe, groups: int) -> int:
    """Number of steps of a run on so many groups. Raises ValueError if they do not fill one."""
    steps = recipe.epochs * groups // recipe.batch
    if not steps:
        raise ValueError(
            f"{groups} groups in {recipe.epochs} epochs do not fill a batch of {recipe.batch}: "
            "more epochs or a smaller batch in the recipe"
        )
    return steps


@dataclass
class Order:
    """``count`` groups in steps of ``batch``, each of them in rows of ``micro_batch``.

    Epochs follow one another without a gap, so a step may reach into the next epoch. With ``shuffle``, every epoch has
    its own permutation, by ``seed``; without, each has the order of the data.
    """

    count: int
    batch: int
    micro_batch: int
    seed: int
    shuffle: bool
    _permuted: tuple[int, Sequence[int]] = field(default=(-1, ()), init=False)

    def rows_each(self, world: int) -> int:
        """Rows per step for each of ``world`` processes. Raises ValueError if that is not a whole number."""
        rows, left = divmod(self.batch, self.micro_batch * world)
        if left:
            raise ValueError(
                f"batch {self.batch}: must be a multiple of micro_batch {self.micro_batch} x {world} devices"
            )
        return rows

    def rows(self, step: int, rank: int = 0, world: int = 1) -> Iterator[list[int]]:
        """Indices of the groups of each row that process ``rank`` of ``world`` has in a step (from 0).

        Rows are dealt out in turn, so the rows of all processes together are those of a single one.
        """
        places = range(step * self.batch, (step + 1) * self.batch)
        for start in range(rank * self.micro_batch, self.batch, world * self.micro_batch):
            yield [self._group(place) for place in places[start : start + self.micro_batch]]

    def _group(self, place: int) -> int:
        epoch, index = divmod(place, self.count)
        if not self.shuffle:
            return index
        if epoch != self._permuted[0]:
            order = np.random.default_rng([self.seed, epoch]).permutation(self.count)
            self._permuted = (epoch, order.tolist())
        return self._permuted[1][index]
