"""The ``jrm`` command. What the client can do is here; other commands are found by entry point (``commands.py``)."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .aio import DEFAULT_TIMEOUT
from .client import JRMClient
from .commands import Commands
from .errors import JRMError
from .explain_command import explain
from .html_report import document
from .options import DEFAULT_URL, ApiKey, Images, NoSource, Source, Url, split_images
from .report import table, to_json
from .score_file import JSONLError, Summary, score_file
from .terminal import print_json, print_table
from .thumbnails import pictures_of
from .wire import source_value

app = typer.Typer(
    name="jrm",
    cls=Commands,
    help="JRM Serve: rewards for image edits.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # a bug's traceback goes to logs: plain, and without locals, which may be keys
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"jrm-serve {version('jrm-serve')}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)] = False,
) -> None:
    pass


@app.command()
def score(
    images: Images = None,
    instruction: Annotated[
        str | None, typer.Option("--instruction", "-i", help="The edit that was asked for.", show_default=False)
    ] = None,
    source: Source = None,
    no_source: NoSource = False,
    jsonl: Annotated[
        Path | None,
        typer.Option(help="Score the rows of this file: source, edited, instruction, optional id.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="With --jsonl: append scores here; rows that are in it are skipped.",
            show_default=False,
        ),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(help="With --jsonl: where relative paths start.", show_default="the folder of the file"),
    ] = None,
    url: Url = None,
    api_key: ApiKey = None,
    timeout: Annotated[
        float, typer.Option(help="Seconds for the call; with --jsonl, for every 64 rows.")
    ] = DEFAULT_TIMEOUT,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    html: Annotated[
        Path | None,
        typer.Option(help="Write the ranked edits with their pictures to this file too.", show_default=False),
    ] = None,
) -> None:
    """Score edits of one image, or the pairs of a JSONL file.

    jrm score source.png edit-0.png edit-1.png -i "make the car red"

    jrm score --source car.png --source garage.png edit.png -i "put the car into the garage"

    jrm score --no-source image.png -i "a red car"

    jrm score source.png edit-0.png edit-1.png -i "make the car red" --html scores.html

    jrm score --jsonl pairs.jsonl --output scores.jsonl

    A JSONL run can be interrupted and started again: it resumes where it stopped.

    Exit status: 0 if everything has a score, 1 if not, 2 for wrong usage.
    """
    try:
        with JRMClient(url or DEFAULT_URL, api_key=api_key, timeout=timeout) as client:
            if jsonl is not None:
                if images or source or no_source or instruction is not None or output is None:
                    raise typer.BadParameter("--jsonl goes with --output, and without images and --instruction")
                if html is not None:
                    raise typer.BadParameter("--html shows the edits of one image; with --jsonl there are many")
                complete = _score_jsonl(client, jsonl, output, root, as_json)
            else:
                sources, edits = split_images(images, source, no_source)
                if not edits or instruction is None or output is not None or root is not None:
                    raise typer.BadParameter("expected SOURCE EDITED... --instruction TEXT, or --jsonl IN --output OUT")
                if html is not None and any(html.exists() and html.samefile(path) for path in (*sources, *edits)):
                    raise typer.BadParameter("--html names one of the images, and would be written over it")
                complete = _score_group(client, sources, edits, instruction, as_json, html)
    except BrokenPipeError:
        raise  # stdout was closed
    except (JRMError, JSONLError, OSError, ValueError) as error:
        typer.echo(f"jrm score: {error}", err=True)
        raise typer.Exit(1) from None
    if not complete:
        raise typer.Exit(1)


def _score_group(
    client: JRMClient, sources: list[Path], edits: list[Path], instruction: str, as_json: bool, html: Path | None
) -> bool:
    group = client.score_group(sources or None, instruction, edits, on_error="nan")
    scores = group.scores
    names = [str(path) for path in edits]
    if as_json:
        rows = [{"edited": name, **to_json(score)} for name, score in zip(names, scores, strict=True)]
        print_json(
            {"source": source_value([str(path) for path in sources]), "instruction": instruction, "scores": rows}
        )
    else:
        print_table(table(names, scores))
    if html is not None:  # last, so that a file that cannot be written costs no scores
        pictures = pictures_of(instruction, ((str(path), path) for path in sources), zip(names, edits, strict=True))
        html.write_text(document(scores, pictures), encoding="utf-8")
    return all(score.error is None for score in scores)


def _score_jsonl(client: JRMClient, source: Path, output: Path, root: Path | None, as_json: bool) -> bool:
    bar = Progress(
        TextColumn("scoring"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True)
    )
    with bar:
        task = bar.add_task("scoring", total=None)
        summary = score_file(
            client, source, output, root, lambda done, total: bar.update(task, completed=done, total=total)
        )
    for line, reason in sorted(summary.failed.items()):
        typer.echo(f"{source}:{line}: {reason}", err=True)
    if as_json:
        print_json(_summary_json(summary))
    else:
        typer.echo(f"{summary.scored} scored, {summary.skipped} had a score already, {len(summary.failed)} failed")
    return not summary.failed


def _summary_json(summary: Summary) -> dict[str, object]:
    failed = [{"line": line, "reason": reason} for line, reason in sorted(summary.failed.items())]
    return {"rows": summary.rows, "scored": summary.scored, "skipped": summary.skipped, "failed": failed}


app.command()(explain)


def main() -> None:
    """Entry point of the ``jrm`` command."""
    app()
