"""Groups of the synthetic world: the source, one instruction, edits of known quality with labels and critiques."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, get_args, overload

from PIL import Image

from jrm_training.data import Edit, Group

from . import annotators, critique, edits, flaws, tasks, two_sources
from .scene import Scene, draw
from .tasks import ALL, HELD_OUT, SEEN

Split = Literal["train", "test", "unseen"]
MOST_SHAPES = 6  # more rarely fit
_SIDES = (64, 96, 128, 192, 256)  # of the shorter side, pixels


@dataclass(frozen=True)
class World(Sequence[Group]):
    """``groups`` groups of ``edits`` edits each; a group depends on its index and the other fields, not on ``groups``.

    ``shapes`` are the fewest and the most in a source, ``flawed`` is the share of edits with a visual flaw,
    ``two_sources`` that of groups with two source images; the other groups are the same for any share. The train and
    test splits never show a held-out combination of colour and kind; in "unseen", every task is about one. Each
    split has its own random numbers. Labels ("instruction_following", "visual_quality") are 1 to 4, or the noisy
    readings of simulated annotator number ``annotator``; critiques are those of appendix C; images are 64 to 343 pixels
    wide and high, or their shorter side has ``side`` pixels. Cheap to make and to pickle: a group is drawn anew at
    every access. Raises ValueError, naming the field, for invalid values.
    """

    groups: int
    seed: int = 0
    split: Split = "train"
    edits: int = 4
    shapes: tuple[int, int] = (1, 5)
    flawed: float = 0.65
    two_sources: float = 0.0
    annotator: int | None = None
    side: int | None = None

    def __post_init__(self) -> None:
        fewest, most = self.shapes
        if self.groups < 0:
            raise ValueError(f"groups is {self.groups}, must be at least 0")
        if self.split not in get_args(Split):
            raise ValueError(f"split is {self.split!r}, must be one of {', '.join(get_args(Split))}")
        if self.edits < 1:
            raise ValueError(f"edits is {self.edits}, must be at least 1")
        if not 0 <= fewest <= most <= MOST_SHAPES:
            raise ValueError(f"shapes is {self.shapes}, must be (fewest, most) within 0 and {MOST_SHAPES}")
        if self.side is not None and self.side < min(_SIDES):
            raise ValueError(f"side is {self.side}, must be at least {min(_SIDES)}")
        for name, share in (("flawed", self.flawed), ("two_sources", self.two_sources)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} is {share}, must be between 0 and 1")

    def __len__(self) -> int:
        return self.groups

    @overload
    def __getitem__(self, index: int) -> Group: ...
    @overload
    def __getitem__(self, index: slice) -> list[Group]: ...
    def __getitem__(self, index: int | slice) -> Group | list[Group]:
        if isinstance(index, slice):
            return [self[n] for n in range(*index.indices(self.groups))]
        plan = self._plan(index)
        noise = None
        if self.annotator is not None:
            noise = Random(f"{self._name(index)}/annotator {self.annotator}")  # noqa: S311 - not a secret

        def picture(scene: Scene, flaw: flaws.Flaw | None = None) -> Image.Image:
            image = draw(scene, plan.side, plan.oversample)
            return image if flaw is None else flaws.apply(image, flaw)

        made = tuple(
            Edit(
                image=picture(planned.edit.scene, planned.flaw),
                labels=_labels(planned.edit, planned.quality, noise),
                critiques=plan.critiques(planned),
            )
            for planned in plan.edits
        )
        source, second = plan.task.scene, plan.task.second
        sources = picture(source) if second is None else (picture(source), picture(second))
        return Group(source=sources, instruction=plan.task.instruction, edits=made)

    def texts(self, index: int) -> list[str]:
        """The instruction of a group and its critiques, edit by edit. Nothing is drawn for them."""
        plan = self._plan(index)
        return [plan.task.instruction, *(text for planned in plan.edits for text in plan.critiques(planned).values())]

    def _name(self, index: int) -> str:
        return f"{self.seed}/{self.split}/{index % self.groups}"

    def _plan(self, index: int) -> _Plan:
        if not -self.groups <= index < self.groups:
            raise IndexError(f"group {index} of {self.groups}")
        name = self._name(index)
        two = Random(f"{name}/sources").random() < self.two_sources  # noqa: S311 - not a secret
        sample_task = two_sources.sample_task if two else tasks.sample_task
        random = Random(name)  # noqa: S311 - as above
        unseen = self.split == "unseen"
        palette = ALL if unseen else SEEN
        task = sample_task(random, shapes=self.shapes, palette=palette, featured=HELD_OUT if unseen else None)
        side, oversample = random.choice(_SIDES), random.choice((1, 2, 4))
        side = self.side or side  # drawn even if given, so that the group is the same at any size

        made: list[_PlannedEdit] = []
        queue: list[str] = []
        while len(made) < self.edits:
            queue = queue or random.sample(sorted(edits.LABELS), len(edits.LABELS))
            edit = edits.edit(task, queue.pop(), palette, random)
            if edit is None:
                continue
            quality = 4 if random.random() >= self.flawed else random.choice((1, 2, 3))
            made.append(_PlannedEdit(edit, quality, flaws.sample(quality, random, empty=not edit.scene.shapes)))
        return _Plan(task, side, oversample, made)


@dataclass(frozen=True)
class _PlannedEdit:
    edit: edits.Edit
    quality: int
    flaw: flaws.Flaw | None


@dataclass(frozen=True)
class _Plan:
    """All of a group but its pictures and labels."""

    task: tasks.Task
    side: int
    oversample: int
    edits: list[_PlannedEdit]

    def critiques(self, planned: _PlannedEdit) -> dict[str, str]:
        return {
            "instruction_following": critique.instruction_following(planned.edit, self.task.scene),
            "visual_quality": critique.visual_quality(planned.quality, planned.flaw, planned.edit.scene),
        }


def _labels(edit: edits.Edit, quality: int, noise: Random | None) -> dict[str, float]:
    """The true labels, or an annotator's readings of them."""
    if noise is None:
        return {"instruction_following": edit.label, "visual_quality": quality}
    return {
        "instruction_following": annotators.read(edit.label, annotators.FOLLOWING_DOUBT[edit.quality], noise),
        "visual_quality": annotators.read(quality, annotators.QUALITY_DOUBT[quality], noise),
    }
