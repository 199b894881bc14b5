"""Figures of a benchmark from scored pairs, for people (one table) and for programs (JSON without NaN).

For each part of a benchmark, and for each dimension of the checkpoint and its reward:

========================  ====================================================================================
figure                    what is right
========================  ====================================================================================
``strict_accuracy``       of all pairs, the better edit has the higher score; human ties and equal scores are wrong
``accuracy_without_ties`` the same, of the pairs in which people prefer one edit
``accuracy_with_ties``    of all pairs, the verdict (first, second, tie) is the human one. Differences up to a
                          threshold are called ties; it is chosen on one half of the sources and the accuracy
                          measured on the other
``published_…``           what the benchmark's own code counts
========================  ====================================================================================
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from jrm_service.scoring.types import Score
from jrm_training.bootstrap import DRAWS, LEVEL, Array, Estimate, Share, Tally, estimates
from jrm_training.evaluate import ScoredGroup
from jrm_training.evaluate_report import cell
from jrm_training.evaluate_results import Failed
from jrm_training.evaluate_scorers import GroupScorer

from .formulas import Labels, Mask, best_threshold, in_order, share_sums, with_threshold
from .pairs import Clusters, PairSet

FORMAT = "jrm-benchmark/1"
REWARD = "reward"

_FIGURES = {
    "strict_accuracy": "strict accuracy",
    "accuracy_without_ties": "accuracy without ties",
    "accuracy_with_ties": "accuracy with ties, held out",
}


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a benchmark: how many pairs it has, how many of them people call ties."""

    pairs: int
    ties: int


@dataclass(frozen=True, slots=True)
class Output:
    """The figures of one output (a dimension, or the reward) by part; categories share the threshold of their part."""

    thresholds: Mapping[str, float]
    figures: Mapping[str, Mapping[str, Estimate]]


@dataclass(frozen=True, slots=True)
class BenchmarkReport:
    """What a benchmark found. ``failed`` counts edits without a score by error code; their pairs are in no figure.

    ``revision`` is that of the data set, ``checksum`` of the rows that were used. ``problems`` names rows that were
    left out, ``notes`` says what else a reader should know. ``halves`` are the numbers of sources that thresholds were
    chosen on and measured on.
    """

    benchmark: str
    title: str
    caution: str
    revision: str
    checksum: str
    files: Sequence[str]
    rows: int
    pairs: int
    problems: Sequence[str]
    notes: Sequence[str]
    model: str
    fingerprint: str
    failed: Mapping[str, int]
    resized: bool
    parts: Mapping[str, Part]
    outputs: Mapping[str, Output]
    halves: tuple[int, int]
    level: float
    draws: int
    seed: int


def make_benchmark_report(
    data: PairSet,
    scored: Sequence[ScoredGroup],
    scorer: GroupScorer,
    *,
    revision: str,
    level: float = LEVEL,
    draws: int = DRAWS,
    seed: int = 0,
) -> BenchmarkReport:
    """Figures of the scored pairs, deterministic by ``seed``, which also draws the halves."""
    clusters = Clusters.of(data.pairs)
    labels = np.array([pair.label for pair in data.pairs], np.int64)
    drawn = np.random.default_rng(seed).permutation(clusters.count) < clusters.count // 2
    names = dict.fromkeys(part for pair in data.pairs for part in pair.parts)
    members = {name: np.array([name in pair.parts for pair in data.pairs], bool) for name in names}
    outcomes = [outcome for one in scored for outcome in one.outcomes]
    outputs = {}
    for name in (*scorer.dimensions, REWARD):
        differences = _differences(scored, name)
        thresholds, tallies = _tallies(labels, differences, members, clusters, drawn)
        for part, found in data.benchmark.published(data.pairs, labels, differences, clusters, cut=data.cut).items():
            tallies |= {(part, figure): tally for figure, tally in found.items()}
        keys = {f"{part}\n{figure}": (part, figure) for part, figure in tallies}
        found_figures: dict[str, dict[str, Estimate]] = {part: {} for part in names}
        flat = {key: tallies[where] for key, where in keys.items()}
        for key, estimate in estimates(flat, draws=draws, seed=seed, level=level).items():
            part, figure = keys[key]
            found_figures[part][figure] = estimate
        outputs[name] = Output(thresholds, found_figures)
    return BenchmarkReport(
        benchmark=data.benchmark.name,
        title=data.benchmark.title,
        caution=data.benchmark.caution,
        revision=revision,
        checksum=data.checksum,
        files=[path.name for path in data.paths],
        rows=data.total,
        pairs=len(data),
        problems=data.problems,
        notes=data.notes(),
        model=scorer.model,
        fingerprint=scorer.fingerprint,
        failed=dict(Counter(outcome.code for outcome in outcomes if isinstance(outcome, Failed)).most_common()),
        resized=data.benchmark.resize,
        parts={name: Part(int(mask.sum()), int((mask & (labels == 0)).sum())) for name, mask in members.items()},
        outputs=outputs,
        halves=(int(drawn.sum()), int((~drawn).sum())),
        level=level,
        draws=draws,
        seed=seed,
    )


def _differences(scored: Sequence[ScoredGroup], output: str) -> Array:
    """Score of the first edit minus score of the second, NaN without one of them."""
    pairs = [[_number(outcome, output) for outcome in one.outcomes] for one in scored]
    return np.array([first - second for first, second in pairs], np.float64)


def _number(outcome: Score | Failed, output: str) -> float:
    if isinstance(outcome, Failed):
        return float("nan")
    return outcome.reward if output == REWARD else outcome.dimensions[output].mean


def _tallies(
    labels: Labels, differences: Array, members: Mapping[str, Mask], clusters: Clusters, drawn: Mask
) -> tuple[dict[str, float], dict[tuple[str, str], Tally]]:
    """Our own figures of every part. A category has the threshold of what it is a part of."""
    scored = np.isfinite(differences)
    choosing = drawn[clusters.of_pair]
    thresholds = {}
    for part, mask in members.items():
        if "/" not in part:
            chosen_on = mask & scored & choosing
            thresholds[part] = best_threshold(labels[chosen_on], differences[chosen_on])
    tallies: dict[tuple[str, str], Tally] = {}
    right = in_order(labels, differences)
    for part, mask in members.items():
        verdicts = with_threshold(labels, differences, thresholds[part.partition("/")[0]])
        for figure, correct, counted in (
            ("strict_accuracy", right, mask & scored),
            ("accuracy_without_ties", right, mask & scored & (labels != 0)),
            ("accuracy_with_ties", verdicts, mask & scored & ~choosing),
        ):
            tallies[part, figure] = Share(share_sums(correct, counted, clusters.of_pair, clusters.count))
    return thresholds, tallies


def to_json(report: BenchmarkReport) -> dict[str, Any]:
    """Every figure as JSON values; what could not be measured is null."""
    return {
        "format": FORMAT,
        "benchmark": report.benchmark,
        "data": {
            "title": report.title,
            "revision": report.revision,
            "checksum": report.checksum,
            "files": list(report.files),
            "rows": report.rows,
            "pairs": report.pairs,
            "left_out": list(report.problems),
            "notes": list(report.notes),
            "edits_resized_to_source": report.resized,
        },
        "model": report.model,
        "fingerprint": report.fingerprint,
        "failed": {"count": sum(report.failed.values()), "codes": dict(report.failed)},
        "parts": {name: asdict(part) for name, part in report.parts.items()},
        "outputs": {
            name: {
                "thresholds": dict(output.thresholds),
                "figures": {
                    part: {figure: asdict(estimate) for figure, estimate in figures.items()}
                    for part, figures in output.figures.items()
                },
            }
            for name, output in report.outputs.items()
        },
        "split": {
            "of": "sources with their instruction",
            "threshold_chosen_on": report.halves[0],
            "measured_on": report.halves[1],
            "seed": report.seed,
        },
        "interval": {
            "level": report.level,
            "method": "bootstrap over sources with their instruction",
            "draws": report.draws,
            "seed": report.seed,
        },
        "not_comparable": report.caution,
    }


def table(report: BenchmarkReport) -> Table:
    """Every figure of each part, the strict accuracy of each category, then what the figures are of."""
    grid = Table(caption=_caption(report), caption_justify="left")
    grid.add_column(f"{report.title}: {report.pairs:,} pairs")
    grid.add_column("pairs", justify="right")
    for name in report.outputs:
        grid.add_column(Text(name), justify="right")
    for part, counts in report.parts.items():
        if "/" in part:
            cells = [cell(output.figures[part]["strict_accuracy"]) for output in report.outputs.values()]
            grid.add_row(Text(f"  {part.partition('/')[2]}"), f"{counts.pairs:,}", *cells)
            continue
        grid.add_section()
        ties = f", {counts.ties:,} ties" if counts.ties else ""
        grid.add_row(Text(f"{part}{ties}", style="bold"), f"{counts.pairs:,}", *("" for _ in report.outputs))
        for figure in dict.fromkeys(key for output in report.outputs.values() for key in output.figures[part]):
            label = _FIGURES.get(figure) or f"as published: {figure.removeprefix('published_').replace('_', ' ')}"
            cells = [cell(output.figures[part].get(figure)) for output in report.outputs.values()]
            grid.add_row(f"  {label}", "", *cells)
    if report.failed:
        codes = ", ".join(f"{code} {count:,}" for code, count in report.failed.items())
        failed = f"edits without a score, whose pairs are in no figure: {sum(report.failed.values()):,} ({codes})"
        grid.add_section()
        grid.add_row(Text(failed, style="red"))
    return grid


def _caption(report: BenchmarkReport) -> Text:
    lines = [
        f"{report.model} · {report.fingerprint[:16]} · data set revision {report.revision}",
        f"[{report.level:.0%} intervals], {report.draws:,} resamples of the sources; tie thresholds chosen on "
        f"{report.halves[0]:,} sources, measured on the other {report.halves[1]:,} (seed {report.seed})",
        f"Compare with care: {report.caution}",
        *(f"Note: {note}" for note in report.notes),
    ]
    return Text("\n".join(lines))
