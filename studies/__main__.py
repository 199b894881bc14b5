"""``python -m studies``. Heavy imports happen inside the command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from jrm_service.options import AllowPipelineDrift

if TYPE_CHECKING:
    from .study import Plan

PAGE = "training.md"


def study(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders of finished runs, the main one first.", show_default=False),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for study.json and the plots.")] = Path("docs"),
    groups: Annotated[int, typer.Option(min=2, help="Groups of each split of the synthetic world.")] = 200,
    edits: Annotated[int, typer.Option(min=2, help="Edits in a group.")] = 12,
    critiques: Annotated[int, typer.Option(min=0, help="Edits that get critiques, where alpha is not 0.")] = 200,
    annotators: Annotated[int, typer.Option(min=2, help="Simulated annotators, who vote on every pair.")] = 10,
    seed: Annotated[int, typer.Option(help="The world's seed.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:0.")] = "auto",
    allow_pipeline_drift: AllowPipelineDrift = False,
) -> None:
    """Compare training runs side by side: accuracy, calibration, critiques, hidden states, how training went.

    python -m studies out/jrm-tiny out/jrm-tiny-alpha0 --out docs

    Writes study.json and three plots, and puts the table into training.md where OUT has it. A study can be interrupted:
    what was scored is kept in the run folders. Without runs, the plots and the table of OUT/study.json are made again.

    Exit status: 0 if every edit has a score, 1 if not, 2 for wrong usage.
    """
    from jrm_service.errors import CheckpointError
    from jrm_service.scoring.backend import WorkerLost
    from jrm_training.evaluate_results import EvaluationError

    from .plots import draw
    from .study import FILE, Plan, read_study, write_study
    from .table import render

    try:
        if runs:
            plan = Plan(groups=groups, edits=edits, critiques=critiques, annotators=annotators, seed=seed)
            write_study(out / FILE, _measure(runs, plan, device, allow_pipeline_drift))
        document = read_study(out / FILE)
        table = render(document)
        for file in [out / FILE, *draw(document, out), *_update(out / PAGE, table)]:
            typer.echo(f"wrote {file}", err=True)
    except CheckpointError as error:
        _fail(error.problems)
    except (EvaluationError, WorkerLost, OSError, ValueError) as error:
        _fail([str(error)])
    typer.echo(table)
    if any(report["failed"]["count"] for run in document["runs"] for report in run["splits"].values()):
        raise typer.Exit(1)


def _measure(runs: Sequence[Path], plan: Plan, device: str, allow_drift: bool) -> dict[str, Any]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
    from transformers.utils import logging

    from .study import measure

    logging.disable_progress_bar()  # of loading weights; it would write into ours
    tasks: dict[str, TaskID] = {}
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )

    def advance(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bar.add_task(what)
        bar.update(tasks[what], completed=done, total=total)

    with bar:
        return measure(runs, plan, device=device, allow_pipeline_drift=allow_drift, advance=advance)


def _update(page: Path, table: str) -> list[Path]:
    from .table import BEGIN, insert

    text = page.read_text(encoding="utf-8") if page.exists() else ""
    if BEGIN not in text:
        return []
    page.write_text(insert(text, table), encoding="utf-8")
    return [page]


def _fail(problems: Sequence[str]) -> NoReturn:
    for problem in problems:
        typer.echo(f"error: {problem}", err=True)
    raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(study)
