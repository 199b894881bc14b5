"""``jrm import-editreward | import-hpsv3``: published weights -> checkpoints that can be served."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from .errors import CheckpointError
from .options import AllowPipelineDrift

Weights = Annotated[
    Path, typer.Option("--checkpoint", help="folder of the weights: model.safetensors, its shards, or model.pth")
]
WeightsOfHPSv3 = Annotated[Path, typer.Option("--checkpoint", help="folder of the weights: HPSv3.safetensors")]
Base = Annotated[Path, typer.Option(help="folder of the model that they were trained from; its weights are not read")]
NewFolder = Annotated[Path, typer.Option(help="folder to write; must be new or empty")]
PromptsFile = Annotated[Path | None, typer.Option(help="JSON file, dimension -> template")]
MinPixels = Annotated[int | None, typer.Option(min=1, help="smallest area", show_default="the published code's")]
MaxPixels = Annotated[int | None, typer.Option(min=1, help="largest area", show_default="the published code's")]
ServedName = Annotated[str | None, typer.Option(help="model name in replies", show_default="that of --out")]


def import_editreward(
    checkpoint: Weights,
    base: Base,
    out: NewFolder,
    prompts: PromptsFile = None,
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
    name: ServedName = None,
    allow_pipeline_drift: AllowPipelineDrift = False,
) -> None:
    """Turn a published EditReward checkpoint with two heads into one that can be served."""
    from .model.editreward import import_editreward as run

    _import(run, checkpoint, base, out, prompts, min_pixels, max_pixels, name, allow_pipeline_drift)


def import_hpsv3(
    checkpoint: WeightsOfHPSv3,
    base: Base,
    out: NewFolder,
    prompts: PromptsFile = None,
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
    name: ServedName = None,
    allow_pipeline_drift: AllowPipelineDrift = False,
) -> None:
    """Turn the published HPSv3 checkpoint (HPSv3.safetensors) into one that can be served."""
    from .model.hpsv3 import import_hpsv3 as run

    _import(run, checkpoint, base, out, prompts, min_pixels, max_pixels, name, allow_pipeline_drift)


def _import(
    run: Callable[..., Any],
    checkpoint: Path,
    base: Path,
    out: Path,
    prompts: Path | None,
    min_pixels: int | None,
    max_pixels: int | None,
    name: str | None,
    allow_pipeline_drift: bool,
) -> None:
    """``run`` an import with a progress bar, and print the next step."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    from .model.preprocessing_version import require_pinned

    bar = Progress(
        "copying weights", BarColumn(), DownloadColumn(), TimeRemainingColumn(), console=Console(stderr=True)
    )
    task = bar.add_task("", total=None, visible=False)
    try:
        require_pinned(allow_drift=allow_pipeline_drift)
        with bar:
            imported = run(
                checkpoint,
                base,
                out,
                prompts=prompts,
                min_pixels=min_pixels,
                max_pixels=max_pixels,
                name=name,
                progress=lambda done, total: bar.update(task, completed=done, total=total, visible=True),
            )
    except CheckpointError as error:
        for problem in error.problems:
            typer.echo(f"error: {problem}", err=True)
        raise typer.Exit(1) from None
    for note in imported.notes:
        typer.echo(f"note: {note}", err=True)
    served = imported.checkpoint
    typer.echo(f"wrote {served.manifest.name} (fingerprint {served.fingerprint}). Next:\n")
    typer.echo(shlex.join(["jrm", "serve", "--checkpoint", str(out)]))
