"""An evaluation for people (one table) and for programs (JSON without NaN)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rich.table import Table
from rich.text import Text

from .bootstrap import Estimate
from .evaluate import OutputReport, Report

FORMAT = "jrm-evaluation/1"

# Figure -> what the table calls it; the order of the rows.
_ROWS = {
    "pairwise_accuracy": "pairwise accuracy",
    "order_of_2": "2-way, order right",
    "order_of_3": "3-way, order right",
    "order_of_4": "4-way, order right",
    "best_of_2": "2-way, best picked",
    "best_of_3": "3-way, best picked",
    "best_of_4": "4-way, best picked",
    "pick_of_group": "pick of the group is a best edit",
    "calibration_error": "calibration error ↓",
    "tie_share": "pairs that are ties",
    "ties_found": "ties called ties",
    "false_ties": "others called ties ↓",
    "accuracy_with_ties": "accuracy with ties",
}
_CRITIQUE_ROWS = {
    "critique_valid": "critique valid",
    "regions_found": "regions found, IoU ≥ 0.5",
    "regions_made_up": "regions made up ↓",
}


def to_json(report: Report) -> dict[str, Any]:
    """Every figure as JSON values; what could not be measured is null. ``metrics`` says what each figure is."""
    return {
        "format": FORMAT,
        "model": report.model,
        "fingerprint": report.fingerprint,
        "groups": report.groups,
        "edits": report.edits,
        "failed": {"count": sum(report.failed.values()), "codes": dict(report.failed)},
        "dimensions": {name: _output(output) for name, output in report.dimensions.items()},
        "reward": _output(report.reward),
        "critiques": {name: _estimates(figures) for name, figures in report.critiques.items()},
        "interval": {
            "level": report.level,
            "method": "bootstrap over groups",
            "draws": report.draws,
            "seed": report.seed,
        },
    }


def _output(output: OutputReport) -> dict[str, Any]:
    return {
        "labelled": output.labelled,
        "figures": _estimates(output.figures),
        "reliability": [asdict(one) for one in output.reliability],
    }


def _estimates(figures: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: asdict(figure) for name, figure in figures.items()}


def table(report: Report) -> Table:
    """One row for each figure, one column for each dimension and one for the reward; counts come last."""
    columns = {**report.dimensions, "reward": report.reward}
    failed = sum(report.failed.values())
    grid = Table(caption=_caption(report), caption_justify="left")
    grid.add_column(f"{report.groups:,} groups, {report.edits:,} edits")
    for name in report.dimensions:
        grid.add_column(Text(name), justify="right")
    grid.add_column("reward", justify="right")
    for key, label in _ROWS.items():
        if any(output.figures[key].value is not None for output in columns.values()):
            grid.add_row(label, *(cell(output.figures[key]) for output in columns.values()))
    for key, label in _CRITIQUE_ROWS.items():
        if any(key in figures for figures in report.critiques.values()):
            grid.add_row(label, *(cell(figures.get(key)) for figures in report.critiques.values()), "")
    grid.add_section()
    grid.add_row("a blind pick is a best edit", *(_chance(o, "pick_of_group") for o in columns.values()))
    grid.add_row("edits with a label", *(f"{output.labelled:,}" for output in columns.values()))
    grid.add_row("pairs with different labels", *(_count(o, "pairwise_accuracy") for o in columns.values()))
    grid.add_row("groups with a pick", *(_count(o, "pick_of_group") for o in columns.values()))
    if failed:
        codes = ", ".join(f"{code} {count:,}" for code, count in report.failed.items())
        grid.add_row(Text(f"edits without a score: {failed:,} ({codes})", style="red"))
    return grid


def _caption(report: Report) -> Text:
    return Text(
        f"{report.model} · {report.fingerprint[:16]} · [{report.level:.0%} intervals], "
        f"{report.draws:,} resamples of the groups"
    )


def cell(figure: Estimate | None) -> Text:
    """A figure with its interval, as tables show it."""
    if figure is None or figure.value is None:
        return Text("–")
    if figure.low is None or figure.high is None:
        return Text(f"{figure.value:.3f} [–]")
    return Text(f"{figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}]")


def _count(output: OutputReport, figure: str) -> str:
    return f"{output.figures[figure].count:,}"


def _chance(output: OutputReport, figure: str) -> str:
    chance = output.figures[figure].chance
    return "–" if chance is None else f"{chance:.3f}"
