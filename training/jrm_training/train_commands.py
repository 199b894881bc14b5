"""``jrm train | init | world``. Heavy imports happen inside the commands."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from jrm_service.options import AllowPipelineDrift

if TYPE_CHECKING:
    from pydantic import ValidationError

    from .config import Recipe
    from .data import Group


def train(
    recipe: Annotated[
        str,
        typer.Option(help="A TOML file, or the name of a shipped one: jrm-tiny, jrm-8b, jrm-8b-lora, …."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Folder of the run; a run that was stopped there is resumed.", show_default=False
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="Checkpoint folder to start from.", show_default="the bundled one, or a new tiny model for the world"
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Preference data (docs/training-data.md), instead of the recipe's.")
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="Weight of the language loss, instead of the recipe's.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model, instead of the recipe's.")] = None,
    device: Annotated[
        str, typer.Option(help="auto, cpu or cuda:0; under torchrun, each process takes its own GPU.")
    ] = "auto",
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Estimate memory, disk space and steps without training. Needs no weights."),
    ] = False,
    devices: Annotated[int, typer.Option(min=1, help="With --dry-run: number of GPUs.")] = 1,
    allow_pipeline_drift: AllowPipelineDrift = False,
) -> None:
    """Train a checkpoint on ranking and language together (Eq. 7).

    The result is OUT/checkpoint, ready for jrm serve --checkpoint. On several GPUs: torchrun --nproc-per-node 8 -m
    jrm_training train ... with the same options.
    """
    from pydantic import ValidationError
    from rich.console import Console
    from rich.progress import Progress

    from jrm_service.errors import CheckpointError
    from jrm_service.model.checkpoint_source import BUNDLED
    from jrm_service.model.devices import resolve_device
    from jrm_service.model.preprocessing_version import require_pinned

    from .config import find_recipe, read_recipe
    from .run import run
    from .tiny import VISION_STEPS, write_start

    console = Console(stderr=True)
    try:
        require_pinned(allow_drift=allow_pipeline_drift)
        overrides = {"alpha": alpha, "name": name, "data": {"jsonl": data, "curriculum": ()} if data else None}
        read = read_recipe(find_recipe(recipe), **overrides)
        if dry_run:
            _count(read, checkpoint or BUNDLED, devices, given=data is not None, gpu=device != "cpu")
            return
        if out is None:
            raise ValueError("--out: missing, the folder of the run")
        chosen = resolve_device(device)
        start = checkpoint or out / "start"
        if checkpoint is None and read.data.jsonl is not None and not start.exists():
            start = BUNDLED  # an untrained model would need far more rows than anybody has
        elif checkpoint is None and not start.exists():
            with Progress(console=console) as bar:
                task = bar.add_task("training the vision tower", total=VISION_STEPS)
                write_start(start, vision_steps=VISION_STEPS, on_step=lambda step, *_: bar.update(task, completed=step))
        written = run(read, start, out, chosen, console)
    except CheckpointError as error:
        _fail(error.problems)
    except ValidationError as error:
        _fail(_problems_of(error))
    except (OSError, ValueError, FloatingPointError) as error:
        _fail([str(error)])
    if written is not None:
        typer.echo(f"wrote {written}; serve it with: {shlex.join(['jrm', 'serve', '--checkpoint', str(written)])}")


def _count(recipe: Recipe, start: Path, devices: int, *, given: bool, gpu: bool) -> None:
    """Print what a run would take. Unless the user gave data, the recipe's file need not exist."""
    from rich.console import Console

    from jrm_service.model.checkpoint import open_checkpoint

    from .dry_run import as_tables, dry_run
    from .run import open_data

    checkpoint = open_checkpoint(start, weights=any(start.glob("*.safetensors")))
    groups: Sequence[Group] | None = None
    if given or recipe.data.jsonl is None or recipe.data.jsonl.exists():
        groups = open_data(recipe.data, checkpoint.manifest.dimensions)
    Console().print(as_tables(dry_run(recipe, checkpoint, groups, devices, gpu=gpu)))


def init(
    base: Annotated[Path, typer.Option(help="Folder of a stock Qwen3-VL model.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to; must be new or empty.")],
    manifest: Annotated[
        Path | None, typer.Option(help="Manifest (docs/checkpoint.md).", show_default="the paper's C.1 and C.2")
    ] = None,
    pixels: Annotated[
        int | None,
        typer.Option(min=1, help="Area that images are resized to.", show_default="the manifest's, or 200704"),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the model.", show_default="the manifest's, or that of --out")
    ] = None,
) -> None:
    """Make a checkpoint to train from a stock Qwen3-VL: reward and region tokens added, reward heads random."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    from jrm_service.errors import CheckpointError

    from .init_checkpoint import prepare

    bar = Progress(
        "copying weights", BarColumn(), DownloadColumn(), TimeRemainingColumn(), console=Console(stderr=True)
    )
    task = bar.add_task("", total=None, visible=False)
    try:
        with bar:
            prepared = prepare(
                base,
                out,
                manifest=manifest,
                pixels=pixels,
                name=name,
                progress=lambda done, total: bar.update(task, completed=done, total=total, visible=True),
            )
    except CheckpointError as error:
        _fail(error.problems)
    typer.echo(f"wrote {prepared.manifest.name}, not trained yet. Next:\n")
    typer.echo(
        shlex.join(["jrm", "train", "--recipe", "jrm-8b", "--checkpoint", str(out), "--data"]) + " DATA --out RUN"
    )


def world(
    out: Annotated[Path, typer.Option("--out", "-o", help="JSONL file; its images go to images/ beside it.")],
    count: Annotated[int, typer.Option(min=1, help="Number of groups.")] = 100,
    edits: Annotated[int, typer.Option(min=2, help="Edits in a group.")] = 12,
    split: Annotated[
        str, typer.Option(help="train, test, or unseen (combinations that training never shows).")
    ] = "test",
    seed: Annotated[int, typer.Option(help="The same seed gives the same groups.")] = 0,
    two_sources: Annotated[
        float, typer.Option(min=0, max=1, help="Share of groups with two source images.", show_default="none")
    ] = 0.0,
    annotator: Annotated[
        int | None,
        typer.Option(min=0, help="Use the noisy labels of simulated annotator N.", show_default="true labels"),
    ] = None,
    side: Annotated[
        int | None, typer.Option(min=64, help="Pixels of the shorter side.", show_default="64 to 256")
    ] = None,
) -> None:
    """Write groups of the synthetic world as preference data, to look at, to score, or to train on."""
    if split not in ("train", "test", "unseen"):
        raise typer.BadParameter(f"--split {split}: expected train, test or unseen")
    from .data import write_groups
    from .world import World

    try:
        groups = World(count, seed, split, edits, two_sources=two_sources, annotator=annotator, side=side)  # type: ignore[arg-type] # split is checked above
        write_groups(out, groups)
    except FileExistsError:
        _fail([f"{out}: already exists and is not overwritten"])
    except OSError as error:
        _fail([str(error)])
    typer.echo(f"wrote {count} groups to {out}")


def _problems_of(error: ValidationError) -> list[str]:
    """What pydantic found in a recipe, one line for each key."""
    lines = []
    for one in error.errors(include_url=False):
        key = ".".join(str(piece) for piece in one["loc"])
        lines.append(f"{key}: {one['msg']}".removeprefix(": ").replace("Value error, ", "", 1))
    return lines


def _fail(lines: Sequence[str]) -> NoReturn:
    for line in lines:
        typer.echo(f"error: {line}", err=True)
    raise typer.Exit(1)
