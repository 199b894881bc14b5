"""A training run from recipe to checkpoint: data, trainer, progress and logs, and the export at the end."""

from __future__ import annotations

import os
import shutil
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any, SupportsIndex, cast, overload

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.utils.tensorboard import SummaryWriter

from jrm_service.model.checkpoint import Checkpoint, open_checkpoint
from jrm_service.model.golden_recording import Example, record

from .config import Data, Recipe
from .data import Group, GroupFile, read_groups
from .distributed import place
from .export import export
from .lora import merged
from .trainer import StepLog, Trainer, append_log
from .world import World

CHECKPOINT = "checkpoint"
GOLDEN_GROUPS, GOLDEN_EDITS = 2, 3


class Joined(Sequence[Group]):
    """Several data sets as one, in order."""

    def __init__(self, parts: Sequence[Sequence[Group]]) -> None:
        self._parts = parts
        self._ends = list(accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: SupportsIndex) -> Group: ...
    @overload
    def __getitem__(self, index: slice) -> list[Group]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> Group | list[Group]:
        if isinstance(index, slice):
            return [self[n] for n in range(*index.indices(len(self)))]
        place = range(len(self))[index]  # as a list: from the end if negative, IndexError beyond
        part = bisect_right(self._ends, place)
        return self._parts[part][place - (self._ends[part - 1] if part else 0)]


def open_data(data: Data, dimensions: Sequence[str]) -> Sequence[Group]:
    """The groups that a recipe trains on. Raises DataError for bad rows, OSError where there is no file."""
    if data.jsonl is not None:
        return read_groups(data.jsonl, dimensions)
    return Joined(
        [
            World(
                stage.groups,
                data.seed + number,
                edits=data.edits,
                shapes=stage.shapes,
                flawed=stage.flawed,
                two_sources=stage.two_sources,
                annotator=stage.annotator,
            )
            for number, stage in enumerate(data.curriculum)
        ]
    )


def warnings_about(groups: Sequence[Group]) -> list[str]:
    """Warnings before a run: dimensions whose heads would learn nothing and would be served all the same."""
    compared = groups.compared if isinstance(groups, GroupFile) else {}
    return [
        f"no row compares edits in {name}: its head is not trained while the backbone changes, "
        "and its score is still part of the reward"
        for name, count in compared.items()
        if not count
    ]


def run(recipe: Recipe, start: Path, out: Path, device: str, console: Console) -> Path | None:
    """Train, or resume a killed run, and export; returns the checkpoint folder (on the first rank).

    ``out`` gets ``log.jsonl``, ``tensorboard/``, ``states/`` and, when all is done, ``checkpoint/``, complete with
    golden scores. A run that is finished is left as it is. ``device`` is "cpu" or "cuda:0"; under torchrun every
    process calls this, and each takes the GPU of its own number. Raises CheckpointError, ValueError and
    FloatingPointError as the trainer does, DataError, OSError, and FileExistsError when ``out`` has a checkpoint that
    another run made.
    """
    with ExitStack() as stack:
        device = stack.enter_context(_processes(device, alone=recipe.shard))
        checkpoint = open_checkpoint(start)
        groups = open_data(recipe.data, checkpoint.manifest.dimensions)
        trainer = Trainer(recipe, checkpoint, groups, out, device)
        first = place().rank == 0
        final = out / CHECKPOINT
        if final.exists() and trainer.finished:
            return final if first else None
        if final.exists():
            raise FileExistsError(f"{final}: exists before the run is finished: another run made it")
        if first:
            for warning in warnings_about(groups):
                console.print(f"warning: {warning}", style="yellow", markup=False, highlight=False, soft_wrap=True)
        display = stack.enter_context(_ProgressDisplay(trainer, out, console)) if first else None
        trainer.fit(display or (lambda _log: None))
        if recipe.lora is not None:
            state = merged(trainer.model)
        else:  # every process gives its share of the weights, and the first has them all
            options = StateDictOptions(full_state_dict=True, cpu_offload=True)
            state = cast(dict[str, torch.Tensor], get_model_state_dict(trainer.model, options=options))
        return _export(trainer, checkpoint, groups, state) if first else None


@contextmanager
def _processes(device: str, *, alone: bool) -> Iterator[str]:
    """The device of this process, in a process group if torchrun started it or if ``alone`` asks for a group of one."""
    if "WORLD_SIZE" not in os.environ and not alone:
        yield device
        return
    options: dict[str, Any] = {}
    if "WORLD_SIZE" not in os.environ:
        options = {"store": dist.HashStore(), "rank": 0, "world_size": 1}  # type: ignore[attr-defined] # not in its stubs
    elif device.startswith("cuda"):
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", **options)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def _export(trainer: Trainer, start: Checkpoint, groups: Sequence[Group], state: Mapping[str, torch.Tensor]) -> Path:
    """Write the checkpoint with its golden scores under another name, then rename it: it is never seen incomplete."""
    recipe = trainer.recipe
    stock, heads = trainer.model.split(state)
    provenance = {
        "recipe": recipe.model_dump(mode="json", exclude={"data": {"jsonl", "workers"}}),
        "steps": trainer.steps,
        "groups": len(groups),
        "torch": torch.__version__.split("+")[0],
        "start": start.fingerprint,
    }
    draft, final = trainer.out / f".{CHECKPOINT}.partial", trainer.out / CHECKPOINT
    shutil.rmtree(draft, ignore_errors=True)
    exported = export(
        start,
        draft,
        tensors=stock,
        heads=heads,
        name=recipe.name,
        dtype=recipe.saved_dtype,
        provenance=provenance,
    )
    shown = [groups[n] for n in range(min(GOLDEN_GROUPS, len(groups)))]
    record(exported, [Example(g.sources, e.image, g.instruction) for g in shown for e in g.edits[:GOLDEN_EDITS]])
    draft.rename(final)
    return final


class _ProgressDisplay:
    """Progress bar, TensorBoard and the log file, fed one ``StepLog`` after another."""

    def __init__(self, trainer: Trainer, out: Path, console: Console) -> None:
        self._out = out
        self._board = SummaryWriter(str(out / "tensorboard"), purge_step=trainer.step + 1)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._bar.add_task(trainer.recipe.name, total=trainer.steps, completed=trainer.step, text="")

    def __enter__(self) -> _ProgressDisplay:
        self._bar.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._bar.stop()
        self._board.close()

    def __call__(self, log: StepLog) -> None:
        """Show and write one step."""
        append_log(self._out, log)
        numbers = {
            "loss/rank": log.rank,
            "loss/language": log.language,
            "loss/total": log.total,
            "gradient_norm": log.gradient_norm,
            "learning_rate": log.learning_rate,
            "groups_per_second": log.groups_per_second,
            **{f"accuracy/{name}": value for name, value in log.accuracy.items()},
        }
        for name, value in numbers.items():
            self._board.add_scalar(name, value, log.step)
        text = (
            f"rank {log.rank:.3f}  language {log.language:.3f}  gradient {log.gradient_norm:.2f}  "
            f"{log.groups_per_second:.1f} groups/s"
        )
        self._bar.update(self._task, completed=log.step, text=text)
