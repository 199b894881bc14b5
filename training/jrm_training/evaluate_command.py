"""``jrm evaluate``. Heavy imports happen inside the command."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from jrm_service.options import AllowPipelineDrift

if TYPE_CHECKING:
    from rich.progress import Progress
    from rich.table import Table

    from .benchmarks.pairs import PairSet
    from .data import Group
    from .evaluate import ScoredGroup
    from .evaluate_scorers import GroupScorer

_BENCHMARKS = ("editscore", "editreward", "mmrb2", "genai-bench")


def evaluate(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="JSONL file of scores; groups already in it are not scored again.")
    ],
    data: Annotated[
        Path | None, typer.Option(help="Preference data to score (docs/training-data.md).", show_default=False)
    ] = None,
    world: Annotated[
        str | None,
        typer.Option(help="Score the synthetic world instead: train, test or unseen.", show_default=False),
    ] = None,
    benchmark: Annotated[
        str | None,
        typer.Option(
            help=f"Score the public benchmark at PATH: {', '.join(_BENCHMARKS)} (docs/benchmarks.md).",
            show_default=False,
        ),
    ] = None,
    path: Annotated[
        Path | None, typer.Argument(help="With --benchmark: its file, or the folder of its files.", show_default=False)
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(help="With --benchmark: the revision of its data set.", show_default="detected from the files"),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="With --benchmark: only the first N rows.", show_default="all")
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="With --benchmark: leave out rows that cannot be read, and list them.")
    ] = False,
    count: Annotated[int, typer.Option(min=1, help="With --world: number of groups.")] = 500,
    edits: Annotated[int, typer.Option(min=2, help="With --world: edits in a group.")] = 12,
    seed: Annotated[
        int,
        typer.Option(
            help="With --world: its seed. With --benchmark: seed of the half that tie thresholds are chosen on."
        ),
    ] = 0,
    two_sources: Annotated[
        float, typer.Option(min=0, max=1, help="With --world: share of groups with two sources.", show_default="none")
    ] = 0.0,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Checkpoint folder, scored in this process.", show_default=False)
    ] = None,
    device: Annotated[str, typer.Option(help="With --checkpoint: auto, cpu or cuda:0.")] = "auto",
    dtype: Annotated[str, typer.Option(help="With --checkpoint: auto, float32, bfloat16 or float16.")] = "auto",
    url: Annotated[str | None, typer.Option(help="A running server to use instead.", show_default=False)] = None,
    api_key: Annotated[
        str | None, typer.Option(help="With --url: sent as a bearer token.", envvar="JRM_API_KEY", show_default=False)
    ] = None,
    timeout: Annotated[float, typer.Option(help="With --url: timeout for one group, in seconds.")] = 60.0,
    allow_pipeline_drift: AllowPipelineDrift = False,
    as_json: Annotated[
        Path | None, typer.Option("--json", help="Write every figure to this file.", show_default=False)
    ] = None,
) -> None:
    """Measure how well a checkpoint or a server orders edits: accuracy, ties, the pick of a group, calibration.

    jrm evaluate --data test.jsonl --checkpoint my-jrm --out scores.jsonl

    jrm evaluate --world test --url http://127.0.0.1:8000 --out scores.jsonl

    jrm evaluate --benchmark mmrb2 MMRB2/benchmark --checkpoint my-jrm --out scores.jsonl

    An interrupted run can be started again: it continues where it stopped and retries what failed.

    Exit status: 0 if every edit has a score, 1 if not, 2 for wrong usage.
    """
    if sum(given is not None for given in (data, world, benchmark)) != 1 or (checkpoint is None) == (url is None):
        raise typer.BadParameter("expected one of --data, --world and --benchmark, and one of --checkpoint and --url")
    if (benchmark is None) != (path is None):
        raise typer.BadParameter("--benchmark NAME and PATH go together")
    if benchmark not in (None, *_BENCHMARKS):
        raise typer.BadParameter(f"--benchmark {benchmark}: expected one of {', '.join(_BENCHMARKS)}")
    for option, file in (("--out", out), ("--json", as_json)):
        if file is not None and (file.is_dir() or not file.parent.is_dir()):
            raise typer.BadParameter(f"{option} {file}: expected a file in an existing folder")
    if world not in (None, "train", "test", "unseen"):
        raise typer.BadParameter(f"--world {world}: expected train, test or unseen")
    if dtype not in ("auto", "float32", "bfloat16", "float16"):
        raise typer.BadParameter(f"--dtype {dtype}: expected auto, float32, bfloat16 or float16")
    from jrm_client import JRMError
    from jrm_service.errors import CheckpointError
    from jrm_service.scoring.backend import WorkerLost

    from .data import read_groups
    from .evaluate_results import EvaluationError
    from .world import World

    try:
        with _scorer(checkpoint, device, dtype, url, api_key, timeout, allow_pipeline_drift) as scorer:
            if benchmark is not None and path is not None:
                pairs = _open_benchmark(benchmark, path, limit, skip_bad)
                complete = _evaluate(pairs, scorer, out, as_json, _benchmark_report(pairs, scorer, revision, seed))
            else:
                groups = (
                    read_groups(data, scorer.dimensions)
                    if data is not None
                    else World(count, seed=seed, split=world, edits=edits, two_sources=two_sources)  # type: ignore[arg-type]
                )
                complete = _evaluate(groups, scorer, out, as_json, _report(scorer))
    except CheckpointError as error:
        _fail(error.problems)
    except (EvaluationError, JRMError, WorkerLost, OSError, ValueError) as error:
        _fail([str(error)])
    if not complete:
        raise typer.Exit(1)


@contextmanager
def _scorer(
    checkpoint: Path | None,
    device: str,
    dtype: str,
    url: str | None,
    api_key: str | None,
    timeout: float,
    allow_drift: bool,
) -> Iterator[GroupScorer]:
    from jrm_client import JRMClient

    from .evaluate_scorers import ServerScorer, open_scorer

    if url is not None:
        with JRMClient(url, api_key=api_key, timeout=timeout) as client:
            yield ServerScorer(client)
    elif checkpoint is not None:
        yield open_scorer(checkpoint, device=device, dtype=dtype, allow_pipeline_drift=allow_drift)


_Reported = tuple["Table", dict[str, Any], bool]  # for people, for programs, and whether every edit has a score


def _evaluate(
    groups: Sequence[Group],
    scorer: GroupScorer,
    out: Path,
    as_json: Path | None,
    report: Callable[[list[ScoredGroup]], _Reported],
) -> bool:
    from rich.console import Console

    from jrm_client.terminal import print_table

    from .evaluate import score_groups
    from .evaluate_results import EvaluationError, ResultsFile

    if not len(groups):
        raise EvaluationError("no groups to evaluate")
    results = ResultsFile(out, scorer.model, scorer.fingerprint)
    with _bar("scoring groups") as bar:
        task = bar.add_task("", total=len(groups))
        scored = score_groups(
            groups, scorer, results, lambda done, total: bar.update(task, completed=done, total=total)
        )
    with Console(stderr=True).status("figures and intervals"):
        shown, value, complete = report(scored)
    print_table(shown)
    if as_json is not None:
        as_json.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    return complete


def _report(scorer: GroupScorer) -> Callable[[list[ScoredGroup]], _Reported]:
    from .evaluate import make_report
    from .evaluate_report import table, to_json

    def report(scored: list[ScoredGroup]) -> _Reported:
        result = make_report(scored, scorer)
        return table(result), to_json(result), not result.failed

    return report


def _benchmark_report(
    pairs: PairSet, scorer: GroupScorer, named_revision: str | None, seed: int
) -> Callable[[list[ScoredGroup]], _Reported]:
    from .benchmarks.report import make_benchmark_report, table, to_json
    from .benchmarks.revision import revision

    def report(scored: list[ScoredGroup]) -> _Reported:
        result = make_benchmark_report(
            pairs, scored, scorer, revision=named_revision or revision(pairs.paths), seed=seed
        )
        return table(result), to_json(result), not result.failed

    return report


def _open_benchmark(name: str, path: Path, limit: int | None, skip_bad: bool) -> PairSet:
    from .benchmarks.catalog import BENCHMARKS
    from .benchmarks.pairs import open_benchmark

    with _bar("reading rows") as bar:
        task = bar.add_task("", total=None)
        pairs = open_benchmark(
            BENCHMARKS[name],
            path,
            limit=limit,
            skip_bad=skip_bad,
            advance=lambda done, total: bar.update(task, completed=done, total=total),
        )
    for problem in pairs.problems:
        typer.echo(f"left out: {problem}", err=True)
    return pairs


def _bar(what: str) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True)
    )


def _fail(problems: Sequence[str]) -> NoReturn:
    for problem in problems:
        typer.echo(f"error: {problem}", err=True)
    raise typer.Exit(1)
