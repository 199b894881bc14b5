"""``jrm train --dry-run``: memory, disk space and steps of a run. No weight is read and nothing is written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from rich.box import SIMPLE
from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table

from jrm_service.model.checkpoint import Checkpoint

from .batch import Collator, GroupRow
from .config import Recipe
from .data import Edit, Group
from .memory import Memory, count_memory, export_bytes, state_bytes
from .order import Order, steps_of
from .states import KEPT

SAMPLE = 32  # groups of the data
CRITIQUE = 256  # tokens of a made-up critique
_INSTRUCTION = "make the car red and leave everything else as it is"


@dataclass(frozen=True)
class DataSize:
    """How much data there is. ``edits`` and ``tokens`` are estimates for all groups from ``sampled`` of them."""

    groups: int
    steps: int
    sampled: int
    edits: float
    tokens: float


@dataclass(frozen=True)
class DryRun:
    """What a run would take: on each device, on disk, and in all. ``data`` is None if the row was made up."""

    recipe: Recipe
    devices: int
    row: GroupRow
    memory: Memory
    export: int
    data: DataSize | None


def dry_run(
    recipe: Recipe, checkpoint: Checkpoint, groups: Sequence[Group] | None, devices: int, *, gpu: bool = True
) -> DryRun:
    """Count a run of a recipe on so many devices; ``gpu``: see ``count_memory``.

    The largest row is made of the largest of some groups of the data. Without data, each group of the row has as many
    edits as fit into ``max_tokens``. Raises ValueError as the run would: for a batch that cannot be divided or filled
    and for a group that is too long.
    """
    collator = Collator(checkpoint, critiques=recipe.alpha > 0, max_tokens=recipe.max_tokens)
    if groups is None:
        order = Order(recipe.batch, recipe.batch, recipe.micro_batch, recipe.data.seed, shuffle=False)
        row, data = _made_up(recipe, checkpoint, collator), None
    else:
        order = Order(len(groups), recipe.batch, recipe.micro_batch, recipe.data.seed, shuffle=False)
        row, data = _sampled(recipe, collator, groups)
    order.rows_each(devices)
    return DryRun(
        recipe=recipe,
        devices=devices,
        row=row,
        memory=count_memory(recipe, checkpoint, collator.new_tokens, row, devices=devices, gpu=gpu),
        export=export_bytes(recipe, checkpoint),
        data=data,
    )


def _sampled(recipe: Recipe, collator: Collator, groups: Sequence[Group]) -> tuple[GroupRow, DataSize]:
    steps = steps_of(recipe, len(groups))
    numbers = np.unique(np.linspace(0, len(groups) - 1, SAMPLE).round().astype(int)).tolist()
    tokens, edits = {}, {}
    for number in numbers:
        alone = collator.row([groups[number]])
        tokens[number], edits[number] = alone.packed.ids.numel(), len(alone.labels)
    largest = sorted(numbers, key=lambda number: -tokens[number])
    chosen = [largest[n % len(largest)] for n in range(recipe.micro_batch)]
    share = len(groups) / len(numbers)
    size = DataSize(len(groups), steps, len(numbers), share * sum(edits.values()), share * sum(tokens.values()))
    return collator.row([groups[number] for number in chosen]), size


def _made_up(recipe: Recipe, checkpoint: Checkpoint, collator: Collator) -> GroupRow:
    """Square images of the largest area, critiques of ``CRITIQUE`` tokens."""
    side = math.isqrt(checkpoint.image_spec.max_pixels)
    words = 1
    while len(collator.critique_ids(" good" * (words + 1))) <= CRITIQUE:
        words += 1
    critiques = dict.fromkeys(checkpoint.manifest.dimensions, " good" * words)
    labels = dict.fromkeys(checkpoint.manifest.dimensions, 0.0)
    sources = any("source" in pass_.parts for pass_ in checkpoint.manifest.passes)

    def group(number: int, edits: int) -> Group:
        pictures = [Image.new("RGB", (side, side), (number % 256, n % 256, n // 256)) for n in range(edits + 1)]
        made = tuple(Edit(picture, labels, critiques) for picture in pictures[1:])
        return Group(pictures[0] if sources else None, _INSTRUCTION, made)

    two, three = (collator.row([group(0, edits)]).packed.ids.numel() for edits in (2, 3))
    edits = max(2, 2 + (recipe.max_tokens - two) // (three - two))
    return collator.row([group(number, edits) for number in range(recipe.micro_batch)])


# --- as a table ------------------------------------------------------------------------------------------------------


def as_tables(run: DryRun) -> RenderableType:
    """The tables that are printed; sizes in GB of 10^9 bytes."""
    recipe, memory, row = run.recipe, run.memory, run.row
    title = f"{recipe.name} on {run.devices} device{'s' * (run.devices != 1)}: memory of each"
    device = Table(title=title, title_justify="left", box=SIMPLE)
    device.add_column("")
    device.add_column("GB", justify="right")
    device.add_column("how it is counted")
    spread = f"1/{run.devices} of " if recipe.shard and run.devices > 1 else ""
    frozen = "" if memory.trained == memory.parameters else f", {memory.trained:,} of them trained"
    at_rest = f"{recipe.dtype}, and float32 what is trained" if recipe.lora else "float32"
    kept = "layers are computed again" if recipe.gradient_checkpointing else "all layers are kept"
    summed = "gradients of the largest part, as computed and in float32" if recipe.shard else "all gradients, flat"
    if recipe.dtype == "bfloat16" and not (recipe.shard or recipe.lora):
        kept += "; counted in float32, autocast takes less"
    lines = [
        ("weights", memory.weights, f"{spread}{memory.parameters:,}{frozen}; {at_rest}"),
        ("copies", memory.copies, f"all weights, gathered or cast, in {recipe.dtype}"),
        ("gradients", memory.gradients, f"{spread}what is trained, float32"),
        ("optimizer", memory.optimizer, f"{spread}what is trained, two moments in float32"),
        ("a row", memory.row, f"the most alive at once, forward and back; {kept}"),
        ("sums in flight", memory.summed, summed),
    ]
    for name, size, how in lines:
        if size:
            device.add_row(name, gigabytes(size), how)
    device.add_section()
    device.add_row("most at once", gigabytes(memory.peak), "the sum; what the allocator and NCCL keep comes on top")
    if recipe.gradient_checkpointing:
        without = memory.peak - memory.row + memory.row_kept
        device.add_row("without checkpointing", gigabytes(without), f"a row takes {gigabytes(memory.row_kept)} GB")
    device.add_row("while loading", gigabytes(memory.loading), "every weight, on each device")

    rest = Table(show_header=False, box=SIMPLE)
    rest.add_column("")
    rest.add_column("")
    where = (
        f"the largest of {run.data.sampled} groups" if run.data else f"made up to fill max_tokens {recipe.max_tokens:,}"
    )
    groups = int(row.group_of.max()) + 1
    rest.add_row(
        "the row",
        f"{groups} group{'s' * (groups != 1)}, {len(row.labels)} edits, {len(row.packed.distinct_images)} images; "
        f"{row.packed.ids.numel():,} tokens, {len(row.targets):,} of them critiques",
    )
    rest.add_row("", where)
    state = state_bytes(memory)
    rest.add_row(
        "states on disk",
        f"{KEPT} of {gigabytes(state)} GB, and a third while it is written: {gigabytes((KEPT + 1) * state)} GB",
    )
    rest.add_row("checkpoint on disk", f"{gigabytes(run.export)} GB in {recipe.saved_dtype}")
    if run.data is None:
        rest.add_row("steps", "not known without the data")
    else:
        data = run.data
        rest.add_row("steps", f"{data.steps:,} of {recipe.batch} groups, {recipe.epochs} times {data.groups:,} groups")
        rest.add_row(
            "in all",
            f"about {recipe.epochs * data.edits:,.0f} candidates, {recipe.epochs * data.tokens:,.0f} tokens",
        )
    return Lines(device, rest)


def gigabytes(size: int) -> str:
    """Bytes in units of 10^9, with at least two significant digits."""
    return f"{size / 1e9:.1f}" if size >= 1e9 else f"{size / 1e9:.2g}" if size < 1e8 else f"{size / 1e9:.2f}"
