"""The figures that matter, in one table, from what the stages have saved so far."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jrm_service.bench.tables import table

Read = Callable[..., Any]

ROWS: dict[str, tuple[str, Callable[[Read], str]]] = {
    "engine, candidates/s (share of the matrix product)": ("38 (75%)", lambda of: _rate(of("engine"))),
    "engine, fp8": ("58", lambda of: _rate(of("fp8"))),
    "prompt first": ("75", lambda of: _rate(of("engine", "prompt_first"))),
    "one candidate of a new source, ms": ("45", lambda of: f"{of('engine', 'one_ms'):.0f}"),
    "a group, one caller, over HTTP, s": ("0.40", lambda of: f"{of('server', 'group_ms') / 1e3:.2f}"),
    "server over engine, all callers": ("0.95", lambda of: f"{of('server', 'rate') / of('engine', 'rate'):.2f}"),
    "float32, golden scores off by": (
        "1e-5",
        lambda of: f"{of('parity', 'paths', 'trie, float32', 'deviation'):.1e}",
    ),
}
"""By name of a row: the goal for the 8B shape on one H100, and a function that reads the figure."""


def summary(results: Path) -> str:
    """Return the table; a figure that no stage has saved yet is shown as "-"."""

    def of(stage: str, *keys: str) -> Any:
        value = json.loads((results / f"{stage}.json").read_text())
        for key in keys:
            value = value[key]
        return value

    rows = []
    for name, (goal, read) in ROWS.items():
        try:
            figure = read(of)
        except (OSError, KeyError):  # the stage has not run yet, or has failed
            figure = "-"
        rows.append([name, figure, goal])
    return table(["summary", "found", "goal, 8B on one H100"], rows)


def _rate(figures: Any) -> str:
    return f"{figures['rate']:.1f} ({figures['share']:.0%})"
