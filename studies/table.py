"""The figures of a study as a Markdown table, and its place in a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

BEGIN, END = "<!-- study -->", "<!-- /study -->"

# What the project set out to reach, by (split, output, figure).
_GOALS = {
    ("test", "instruction_following", "pairwise_accuracy"): "≥ 0.90",
    ("test", "visual_quality", "pairwise_accuracy"): "≥ 0.90",
    ("test", "reward", "pick_of_group"): "≥ 0.80",
    ("unseen", "instruction_following", "pairwise_accuracy"): "≥ 0.80",
    **{("test", name, "calibration_error"): "≤ 0.05" for name in ("instruction_following", "visual_quality", "reward")},
    **{("test", name, "critique_valid"): "≥ 0.95" for name in ("instruction_following", "visual_quality")},
    ("test", "instruction_following", "regions_found"): "≥ 0.70",
}
_SPLITS = {"test": "Test split", "unseen": "Unseen colour-shape combinations"}
_FIGURES = {
    "pairwise_accuracy": "pairwise accuracy",
    "order_of_3": "3-way, order right",
    "order_of_4": "4-way, order right",
    "pick_of_group": "the pick of {edits} is a best edit",
    "calibration_error": "calibration error ↓",
}
_CRITIQUE_FIGURES = {
    "critique_valid": "critique is valid JSON of the schema",
    "regions_found": "edit regions found, IoU ≥ 0.5",
    "regions_made_up": "regions made up ↓",
    "verdict_right": "verdict is the true label",
    "verdict_accuracy": "pairwise accuracy of the verdicts",
    "verdict_agreement": "score head orders as the verdicts do",
}
_ANNOTATOR_FIGURES = {
    "std_rank_correlation": "σ follows their spread, rank correlation",
    "vote_calibration_error": "calibration error on their votes ↓",
    "vote_loss": "-log P of their votes, nats ↓",
    "saved_by_std": "of which σ saves, against the best constant one",
}
_SPECTRUM = {
    "effective_rank": ("effective rank", ".1f"),
    "spectral_entropy": ("spectral entropy, nats", ".2f"),
    "isotropy": ("isotropy", ".3f"),
}


def labels(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What each run is called: by its alpha, and by its name too where several have this alpha."""
    alphas = [run["alpha"] for run in runs]
    return [f"α = {run['alpha']:g}" + (f" ({run['name']})" if alphas.count(run["alpha"]) > 1 else "") for run in runs]


def display_name(name: str) -> str:
    """A dimension or the name of a pass, for people."""
    return name.replace("_", " ")


def render(study: Mapping[str, Any]) -> str:
    """The study as Markdown: a table with a row for each figure and a column for each run, and notes on it.

    Where two runs are compared the last column is the gain over the baseline. Depends on the document alone.
    """
    runs = study["runs"]
    gain = len(runs) == 2
    heads = ["figure", "goal", *labels(runs), *(["gain"] if gain else [])]
    lines = [_line(heads), _line(["---"] + ["---:"] * (len(heads) - 1))]
    for title, rows in _sections(study):
        lines.append(_line([f"**{title}**", *[""] * (len(heads) - 1)]))
        lines += [_line(row[: len(heads)]) for row in rows]
    return "\n".join([*lines, "", *_notes(study)]) + "\n"


def insert(page: str, table: str) -> str:
    """A page with ``table`` between its two marks, whatever was there. Raises ValueError for one without marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page has no {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n{table}{END}{after}"


def _sections(study: Mapping[str, Any]) -> Iterator[tuple[str, list[list[str]]]]:
    """(title, rows) of every part of the table; each row ends with the cell of the gain."""
    runs, plan = study["runs"], study["plan"]
    size = f"{plan['groups']:,} groups of {plan['edits']} edits"
    for split, title in _SPLITS.items():
        outputs = [*runs[0]["splits"][split]["dimensions"], "reward"]
        yield (
            f"{title}, {size}",
            [
                _row(runs, split, output, figure, words.format(**plan))
                for figure, words in _FIGURES.items()
                for output in outputs
                if output == "reward" or not figure.startswith(("order", "pick"))
            ],
        )
    critiqued = [run for run in runs if run["splits"]["test"]["critiques"]]
    if critiqued:
        written = critiqued[0]["splits"]["test"]["critiques"]
        yield (
            f"Critiques of {next(iter(written.values()))['critique_valid']['count']:,} edits of the test split",
            [
                _critique_row(runs, name, figure, words)
                for figure, words in _CRITIQUE_FIGURES.items()
                for name in written
                if figure in written[name]
            ],
        )
    if any(run.get("annotators", {}) for run in runs):
        yield (
            f"{plan['annotators']} simulated annotators, test split",
            [
                _annotator_row(runs, name, figure, words)
                for figure, words in _ANNOTATOR_FIGURES.items()
                for name in runs[0]["splits"]["test"]["dimensions"]
                if any(figure in run.get("annotators", {}).get(name, {}) for run in runs)
            ],
        )
    first = runs[0]["representation"]
    yield (
        f"Hidden states h of {next(iter(first.values()))['states']:,} edits of the test split",
        [
            [
                f"{display_name(name)}: {words}",
                "",
                *(format(run["representation"][name][key], form) for run in runs),
                "",
            ]
            for name in first
            for key, (words, form) in _SPECTRUM.items()
        ],
    )


def _row(runs: Sequence[Mapping[str, Any]], split: str, output: str, figure: str, words: str) -> list[str]:
    cells = [_cell(_output(run["splits"][split], output)["figures"][figure]) for run in runs]
    gains = [run["gain"][split][output][figure] for run in runs if run["gain"] and figure in run["gain"][split][output]]
    goal = _GOALS.get((split, output, figure), "")
    return [f"{display_name(output)}: {words}", goal, *cells, _cell(gains[0], signed=True) if gains else ""]


def _critique_row(runs: Sequence[Mapping[str, Any]], name: str, figure: str, words: str) -> list[str]:
    found = [run["splits"]["test"]["critiques"].get(name, {}).get(figure) for run in runs]
    return [f"{display_name(name)}: {words}", _GOALS.get(("test", name, figure), ""), *map(_cell, found), ""]


def _annotator_row(runs: Sequence[Mapping[str, Any]], name: str, figure: str, words: str) -> list[str]:
    found = [run.get("annotators", {}).get(name, {}).get(figure) for run in runs]
    return [f"{display_name(name)}: {words}", "", *map(_cell, found), ""]


def _output(report: Mapping[str, Any], output: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = report["reward"] if output == "reward" else report["dimensions"][output]
    return found


def _notes(study: Mapping[str, Any]) -> Iterator[str]:
    runs = study["runs"]
    level = runs[0]["splits"]["test"]["interval"]["level"]
    yield f"In brackets: {level:.0%} intervals, from resampling the groups. ↓: lower is better."
    if len(runs) == 2:
        yield "Gain: over the run of the smaller α, on the same groups."
    steps = ", ".join(f"{run['steps']:,} ({label})" for run, label in zip(runs, labels(runs), strict=True))
    yield f"Steps of training: {steps}."
    for setting, values in study["differences"].items():
        yield f"Not the same in all runs: `{setting}` is {', '.join(map(str, values))}."
    for run, label in zip(runs, labels(runs), strict=True):
        failed = sum(report["failed"]["count"] for report in run["splits"].values())
        if failed:
            yield f"Edits without a score, which are in no figure: {failed:,} ({label})."


def _cell(estimate: Mapping[str, Any] | None, *, signed: bool = False) -> str:
    if estimate is None or estimate["value"] is None:
        return "–"
    sign = "+" if signed else ""
    value = f"{estimate['value']:{sign}.3f}"
    if estimate["low"] is None or estimate["high"] is None:
        return value
    return f"{value} [{estimate['low']:{sign}.3f}, {estimate['high']:{sign}.3f}]"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
