"""Groups of the synthetic world: one source, one instruction, edits of known quality with labels and critiques."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, overload

from jrm_training.data import Edit, Group

from . import critique, edits, flaws
from .scene import draw
from .tasks import ALL, HELD_OUT, SEEN, sample_task

Split = Literal["train", "test", "unseen"]
_SIDES = (64, 96, 128, 192, 256)


@dataclass(frozen=True)
class World(Sequence[Group]):
    """``count`` groups of ``edits`` edits each; the group at an index depends on seed, split and index alone.

    ``shapes`` bounds the number of shapes in a source; ``flawed`` is the share of edits with a flaw. The train and test splits never show a held-out combination of
    colour and kind; in "unseen", every task is about one. Splits are drawn from streams of their own.
    """

    count: int
    seed: int = 0
    split: Split = "train"
    edits: int = 4
    shapes: tuple[int, int] = (1, 5)
    flawed: float = 0.65

    def __len__(self) -> int:
        return self.count

    @overload
    def __getitem__(self, index: int) -> Group: ...
    @overload
    def __getitem__(self, index: slice) -> list[Group]: ...
    def __getitem__(self, index: int | slice) -> Group | list[Group]:
        if isinstance(index, slice):
            return [self[n] for n in range(*index.indices(self.count))]
        if not -self.count <= index < self.count:
            raise IndexError(f"group {index} of {self.count}")
        return self._group(Random(f"{self.seed}/{self.split}/{index % self.count}"))  # noqa: S311 - not a secret

    def _group(self, random: Random) -> Group:
        unseen = self.split == "unseen"
        palette = ALL if unseen else SEEN
        task = sample_task(random, shapes=self.shapes, palette=palette, featured=HELD_OUT if unseen else None)
        side, oversample = random.choice(_SIDES), random.choice((1, 2, 4))

        made: list[Edit] = []
        queue: list[str] = []
        while len(made) < self.edits:
            queue = queue or random.sample(sorted(edits.LABELS), len(edits.LABELS))
            edit = edits.edit(task, queue.pop(), palette, random)
            if edit is None:
                continue
            quality = 4 if random.random() >= self.flawed else random.choice((1, 2, 3))
            flaw = flaws.sample(quality, random, empty=not edit.scene.shapes)
            image = draw(edit.scene, side, oversample)
            made.append(
                Edit(
                    image=image if flaw is None else flaws.apply(image, flaw),
                    labels={"instruction_following": edit.label, "visual_quality": quality},
                    critiques={
                        "instruction_following": critique.instruction_following(edit, task.scene),
                        "visual_quality": critique.visual_quality(quality, flaw, edit.scene),
                    },
                )
            )
        return Group(source=draw(task.scene, side, oversample), instruction=task.instruction, edits=tuple(made))
