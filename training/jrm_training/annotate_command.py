"""``jrm annotate``. Heavy imports happen inside the command."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from .annotate.estimate import Prices
    from .annotate.jobs import Job, Kind
    from .annotate.journal import Entry, Journal
    from .annotate.run import Options


def annotate(
    data: Annotated[Path, typer.Argument(help="Preference data (docs/training-data.md).", show_default=False)],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The same rows with critiques; the journal is written beside it.")
    ],
    model: Annotated[str, typer.Option(help="Name of the model at the endpoint.", show_default=False)],
    base_url: Annotated[
        str, typer.Option(help="OpenAI-compatible endpoint, up to /v1.", envvar="OPENAI_BASE_URL")
    ] = "https://api.openai.com/v1",
    api_key_env: Annotated[
        str, typer.Option(help="Environment variable with the API key; none is sent if it is not set.")
    ] = "OPENAI_API_KEY",
    dimension: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=following (instruction, regions: A.1) or NAME=quality (the edit alone: A.2); may be repeated.",
            show_default="instruction_following=following, visual_quality=quality",
        ),
    ] = None,
    scale: Annotated[str, typer.Option(help="The worst and the best label, LOW:HIGH.")] = "1:4",
    boxes: Annotated[
        str,
        typer.Option(help="Coordinate order of boxes to ask for: yx as in A.1, or xy if the model was trained on it."),
    ] = "yx",
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="JSON file of an object, following or quality -> prompt.", show_default="the paper's, in our words"
        ),
    ] = None,
    tries: Annotated[int, typer.Option(min=1, help="Maximum number of answers per critique.")] = 3,
    verify: Annotated[
        bool, typer.Option(help="Have each critique read back blindly, and reject it if it contradicts the judgement.")
    ] = True,
    concurrency: Annotated[int, typer.Option(min=1, help="Number of critiques requested at once.")] = 8,
    max_tokens: Annotated[int, typer.Option(min=1, help="Maximum tokens per answer.")] = 1024,
    timeout: Annotated[float, typer.Option(min=0.001, help="Timeout of a request, in seconds.")] = 120.0,
    response_format: Annotated[
        str, typer.Option(help="Output format to request: schema (structured output), json, or none.")
    ] = "schema",
    extra_body: Annotated[
        str | None, typer.Option(help="JSON object to merge into every request.", show_default="nothing")
    ] = None,
    price_in: Annotated[float, typer.Option(min=0, help="Price of a million input tokens.")] = 0.0,
    price_out: Annotated[float, typer.Option(min=0, help="Price of a million output tokens.")] = 0.0,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N rows.", show_default="all")] = None,
    retry_rejected: Annotated[
        bool, typer.Option("--retry-rejected", help="Retry critiques that were given up.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Estimate the cost and send no requests.")] = False,
) -> None:
    """Have a vision model write the critiques of preference data: from people's judgements to the reasons for them.

    jrm annotate train.jsonl --out annotated.jsonl --model qwen3-vl --base-url http://127.0.0.1:8000/v1

    Answers are kept in OUT.journal, from which a killed run continues. In the end, OUT has the rows, and OUT.rejects
    the critiques that were given up, with the reasons.

    Exit status: 0 if every critique was accepted, 1 if not, 2 for wrong usage.
    """
    from .annotate.endpoint import EndpointError
    from .annotate.estimate import Prices
    from .annotate.jobs import read_jobs
    from .annotate.journal import Journal, JournalError
    from .annotate.options import (
        check_outputs,
        parse_body,
        parse_kinds,
        parse_scale,
        path_beside,
        prompts_hash,
        read_templates,
    )
    from .annotate.run import Options

    check_outputs(data, out)
    if boxes not in ("yx", "xy"):
        raise typer.BadParameter(f"--boxes {boxes}: expected yx or xy")
    if response_format not in ("schema", "json", "none"):
        raise typer.BadParameter(f"--response-format {response_format}: expected schema, json or none")
    kinds, labels = parse_kinds(dimension), parse_scale(scale)
    extra, templates = parse_body(extra_body), read_templates(prompts)
    settings = {
        "model": model,
        "boxes": boxes,
        "scale": [labels.low, labels.high],
        "dimensions": dict(kinds),
        "verify": verify,
        "prompts": prompts_hash(boxes, templates),
    }
    options = Options(boxes, tries, verify, concurrency, templates)  # type: ignore[arg-type] # boxes is checked above
    prices = Prices(price_in, price_out)
    ask = {
        "base_url": base_url,
        "model": model,
        "api_key": os.environ.get(api_key_env),
        "max_tokens": max_tokens,
        "timeout": timeout,
        "response_format": response_format,
        "extra": extra,
    }
    try:
        jobs = read_jobs(data, kinds, labels, limit)
        if dry_run:
            with Journal(path_beside(out, "journal"), settings, read_only=True) as journal:
                _print_estimate(data, jobs, journal, options, prices, retry_rejected)
            return
        with Journal(path_beside(out, "journal"), settings) as journal:
            complete = _annotate(data, out, jobs, kinds, journal, options, prices, ask, limit, retry_rejected)
    except (EndpointError, JournalError, OSError, ValueError) as error:
        _fail(str(error))
    except KeyboardInterrupt:
        typer.echo(f"stopped; the same command continues from {path_beside(out, 'journal')}", err=True)
        raise typer.Exit(130) from None
    if not complete:
        raise typer.Exit(1)


def _annotate(
    data: Path,
    out: Path,
    jobs: Sequence[Job],
    kinds: Mapping[str, Kind],
    journal: Journal,
    options: Options,
    prices: Prices,
    ask: Mapping[str, Any],
    limit: int | None,
    retry_rejected: bool,
) -> bool:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from .annotate.endpoint import Endpoint
    from .annotate.options import path_beside
    from .annotate.output import write_output, write_rejects
    from .annotate.run import run, unsettled

    left = unsettled(jobs, journal, retry_rejected=retry_rejected)
    total = sum(len(job.edits) for job in jobs)
    bar = Progress(
        TextColumn("critiques"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[spent]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    task = bar.add_task(
        "", total=total, completed=total - sum(len(edits) for _, edits in left), spent=_spent(journal, prices)
    )

    folder = data.absolute().parent

    async def write() -> None:
        async with Endpoint(**ask) as endpoint:
            await run(
                folder,
                left,
                endpoint,
                journal,
                options,
                lambda _entry: bar.update(task, advance=1, spent=_spent(journal, prices)),
            )

    with bar:
        asyncio.run(write())
    rows = write_output(data, out, journal, kinds, limit)
    keys = {(job.line, job.dimension, edit) for job in jobs for edit in job.edits}
    rejects = [journal.entry(settled) for key, settled in journal.items() if key in keys and not settled.accepted]
    write_rejects(path_beside(out, "rejects"), rejects)
    written = len(keys) - len(rejects)
    typer.echo(f"wrote {rows:,} rows with {written:,} critiques to {out} ({_spent(journal, prices)})")
    if rejects:
        where = path_beside(out, "rejects")
        typer.echo(f"gave up {len(rejects):,} critiques: {_common(rejects)}; all reasons are in {where}")
    return not rejects


def _print_estimate(
    data: Path, jobs: Sequence[Job], journal: Journal, options: Options, prices: Prices, retry_rejected: bool
) -> None:
    from .annotate.estimate import estimate
    from .annotate.run import unsettled

    left = unsettled(jobs, journal, retry_rejected=retry_rejected)
    found = estimate(
        data.absolute().parent,
        left,
        journal,
        boxes=options.boxes,
        templates=options.templates,
        verify=options.verify,
    )
    cost = prices.cost(found.tokens_in, found.tokens_out)
    typer.echo(
        f"{found.critiques:,} critiques of {len({job.line for job in jobs}):,} rows to write, "
        f"{sum(len(job.edits) for job in jobs) - found.critiques:,} are settled\n"
        f"{found.requests:,} requests: {found.tokens_in:,} tokens to read, {found.tokens_out:,} to write, "
        f"about {cost:,.2f}\n"
        f"counted as {found.basis}"
    )


def _spent(journal: Journal, prices: Prices) -> str:
    tokens_in, tokens_out, unmetered = journal.total()
    least = "at least " if unmetered else ""
    return f"{least}{tokens_in:,} tokens in, {tokens_out:,} out, {prices.cost(tokens_in, tokens_out):,.2f}"


def _common(rejects: Sequence[Entry]) -> str:
    """The most frequent faults of the last answers."""
    from collections import Counter

    last = Counter(entry.faults[-1][0] for entry in rejects)
    return "; ".join(f"{count:,}: {fault[:80]}" for fault, count in last.most_common(3))


def _fail(problem: str) -> NoReturn:
    typer.echo(f"error: {problem}", err=True)
    raise typer.Exit(1)
