"""The command ``jrm bench``. Heavy modules are imported inside the command."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from jrm_service.options import AllowPipelineDrift

if TYPE_CHECKING:
    from .engine import Plan
    from .report import Report

_QUICK = {"rounds": 1, "seconds": 0.2, "callers": 4, "sizes": (1, 4)}


def bench(
    checkpoint: Annotated[
        Path | None, typer.Option(help="Checkpoint folder.", show_default="the bundled tiny one")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:0.")] = "auto",
    precision: Annotated[str, typer.Option(help="What to compute in: auto, float32, bfloat16 or float16.")] = "auto",
    edits: Annotated[int, typer.Option(min=1, max=288, help="Edits of a group.")] = 12,
    callers: Annotated[int, typer.Option(min=1, max=256, help="Callers that send groups at once.")] = 24,
    side: Annotated[int, typer.Option(min=32, max=4096, help="Side of the square images that are sent.")] = 512,
    quick: Annotated[bool, typer.Option("--quick", help="Show that it works: the figures mean little.")] = False,
    compare_precision: Annotated[
        Path | None,
        typer.Option(
            help="Instead: score the groups of this JSONL file in every precision, and count the pairs that change "
            "their order. Rows are those of jrm score --jsonl, or preference data.",
            show_default=False,
        ),
    ] = None,
    save: Annotated[Path | None, typer.Option(help="Write every figure to this JSON file.", show_default=False)] = None,
    allow_pipeline_drift: AllowPipelineDrift = False,
) -> None:
    """Measure how fast this machine scores with a checkpoint, in process and over HTTP.

    jrm bench --checkpoint my-jrm

    jrm bench --checkpoint my-jrm --compare-precision test.jsonl

    It starts its own server on a free port, and stops it at the end. Nothing else should run on the machine.
    """
    if save is not None and (save.is_dir() or not save.parent.is_dir()):
        raise typer.BadParameter(f"--save {save}: not a file in an existing folder")
    from jrm_service.errors import CandidateError, CheckpointError
    from jrm_service.scoring.backend import OutOfMemory, WorkerLost

    from .engine import Plan
    from .precision import PRECISIONS
    from .server import ServerFailed

    if precision not in PRECISIONS:
        raise typer.BadParameter(f"--precision {precision}: expected {', '.join(PRECISIONS)}")
    plan = Plan(edits=edits, callers=callers, side=side)
    try:
        if compare_precision is not None:
            figures = _compare(checkpoint, device, compare_precision, allow_pipeline_drift)
        else:
            figures = _measure(checkpoint, device, precision, _quick(plan) if quick else plan, allow_pipeline_drift)
    except CheckpointError as error:
        _fail(error.problems)
    except ServerFailed as error:
        _fail(["the server did not become ready; it printed:", *str(error).splitlines()])
    except (CandidateError, OutOfMemory, WorkerLost, OSError, RuntimeError, ValueError) as error:
        _fail(str(error).splitlines() or [type(error).__name__])
    if save is not None:
        save.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def _quick(plan: Plan) -> Plan:
    from dataclasses import replace

    return replace(plan, **_QUICK)  # type: ignore[arg-type]


def _measure(
    checkpoint: Path | None, device: str, precision: str, plan: Plan, allow_pipeline_drift: bool
) -> dict[str, Any]:
    from .run import STEPS, measure

    with _progress("measuring", STEPS + plan.rounds) as advance:
        report = measure(checkpoint, device, precision, plan, step=advance, allow_pipeline_drift=allow_pipeline_drift)
    typer.echo(_titled(report))
    return report.to_json()


def _titled(report: Report) -> str:
    return f"{report.model} on {report.where}\n\n{report.to_text()}"


def _compare(checkpoint: Path | None, device: str, data: Path, allow_pipeline_drift: bool) -> dict[str, Any]:
    from dataclasses import asdict

    from jrm_service.model.checkpoint import open_checkpoint
    from jrm_service.model.checkpoint_source import BUNDLED
    from jrm_service.model.devices import resolve_device

    from .data import read_data
    from .precision import COMPARED, compare_all, report
    from .run import where

    opened = open_checkpoint(checkpoint or BUNDLED)
    device = resolve_device(device)
    groups = read_data(data, opened.manifest.dimensions)
    with _progress("scoring groups", groups.number * (1 + len(COMPARED))) as advance:
        comparisons = compare_all(checkpoint, device, groups.read, advance, allow_pipeline_drift=allow_pipeline_drift)
    typer.echo(
        f"{opened.manifest.name}, {groups.number} groups of {data.name}, on {where(device)}\n\n{report(comparisons)}"
    )
    return {
        "model": opened.manifest.name,
        "groups": groups.number,
        "comparisons": [asdict(comparison) for comparison in comparisons],
    }


@contextmanager
def _progress(title: str, total: int) -> Iterator[Callable[[str], None]]:
    """Show a bar on stderr; call the yielded function with a name as each piece of work begins."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total)
        begun = False

        def advance(name: str = title) -> None:
            nonlocal begun
            bar.update(task, description=name, advance=int(begun))
            begun = True

        yield advance
        bar.update(task, completed=total, description=title)


def _fail(problems: Sequence[str]) -> NoReturn:
    for problem in problems:
        typer.echo(f"error: {problem}", err=True)
    raise typer.Exit(1)
