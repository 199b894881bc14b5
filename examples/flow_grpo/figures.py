"""Tables and figures of the experiment, from its folder alone: what figures 8, 12 and 13 to 16 and table 4 show."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from . import evaluate, tasks
from .evaluate import Metrics, difference
from .state import read_log

START = "start"
TRUTHS = ("true_following", "true_right", "true_quality")
JUDGED, REFERENCES = "judged.json", "references.json"
RESULTS, TABLE = "results.json", "table.md"
_COLOURS = {"joint": "#0072B2", "alpha-0": "#D55E00", "shuffled": "0.5", "cautious": "#009E73"}
_LINES = {"joint": "-", "alpha-0": "--", "shuffled": ":", "cautious": "-."}
_STYLE: Any = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
WINDOW = 10
"""Steps: the reward of a step depends on its tasks as much as on the editor."""
_CELL, _GAP, _TEXT = 112, 8, 30  # pixels

Runs = dict[str, list[Path]]
"""Configuration -> the folders of its finished runs, one for each seed."""


def write(out: Path, names: Mapping[str, str], start: Path) -> None:
    """Write results.json, table.md and the figures into ``out``, of the runs that are finished there."""
    runs: Runs = {key: sorted(file.parent for file in out.glob(f"{key}-[0-9]*/{JUDGED}")) for key in names}
    runs = {key: folders for key, folders in runs.items() if folders}
    if not runs:
        print("no run is finished yet")
        return
    results = {key: _summary(folders, names[key]) for key, folders in runs.items()}
    results["references"] = json.loads((out / REFERENCES).read_text())
    (out / RESULTS).write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    (out / TABLE).write_text(table(results))
    print((out / TABLE).read_text())
    with rc_context(_STYLE):
        _save(_dynamics(runs, results), out / "rl-dynamics.png")
        _save(_losses(runs, results), out / "rl-losses.png")
    editors = {"before": start} | {
        f"{key}\n{results[key]['fingerprint'][:8]}": _last_editor(runs[key][0], results[key]["steps"])
        for key in ("joint", "alpha-0")
        if key in runs
    }
    sheet(editors).save(out / "rl-edits.png", optimize=True)


def table(results: Mapping[str, Any]) -> str:
    """Table 4 of this world, in Markdown: a row for each seed, and one for what needs no training."""
    configurations = [result for key, result in results.items() if key != "references"]
    first = configurations[0]
    lines = [
        "| configuration | judge | its reward | true following | edits that are right | true quality |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
        "| no RL | | | " + " | ".join(f"{first['before'][name]:.3f}" for name in TRUTHS) + " |",
    ]
    for name, means in results["references"].items():
        lines.append(f"| {name} | | | " + " | ".join(f"{means[truth]:.3f}" for truth in TRUTHS) + " |")
    for result in configurations:
        for seed in range(result["seeds"]):
            gains = result["gains_of_seeds"]
            cells = [_interval(gains[metric][seed]) for metric in ("reward", *TRUTHS)]
            name, judge = f"{result['name']}, seed {seed}", f"`{result['fingerprint'][:8]}`"
            lines.append(f"| {name} | {judge} | {' | '.join(cells)} |")
    lines += [
        "",
        f"Rows with a judge: gains over no RL after {first['steps']} steps, on {first['tasks']} held-out tasks with",
        "the same noise; in brackets 95% intervals of that one run, from resampling the tasks.",
    ]
    return "\n".join(lines) + "\n"


def sheet(editors: Mapping[str, Path], count: int = 8) -> Image.Image:
    """The first held-out tasks: a column for each, with the source and what each editor makes of it."""
    asked = evaluate.held_out(count)
    rows = {"source": np.stack([tasks.source(task) for task in asked])}
    rows |= {name: evaluate.edit(file, asked) for name, file in editors.items()}
    left = 56
    page = Image.new("RGB", (left + count * (_CELL + _GAP), _TEXT + len(rows) * (_CELL + _GAP)), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(10)
    for column, task in enumerate(asked):
        text = "\n".join(textwrap.wrap(task.instruction, 21)[:2])
        pen.text((left + column * (_CELL + _GAP), 2), text, "black", font)
    for row, (name, pictures) in enumerate(rows.items()):
        y = _TEXT + row * (_CELL + _GAP)
        pen.text((2, y + _CELL // 2), name, "black", font)
        for column, picture in enumerate(pictures):
            image = Image.fromarray(picture).resize((_CELL, _CELL), Image.Resampling.NEAREST)
            page.paste(image, (left + column * (_CELL + _GAP), y))
            pen.rectangle(
                (left + column * (_CELL + _GAP) - 1, y - 1, left + column * (_CELL + _GAP) + _CELL, y + _CELL),
                outline="#bbbbbb",
            )
    return page


def _summary(folders: Sequence[Path], name: str) -> dict[str, Any]:
    """Of the runs of a configuration. Raises ValueError for runs that are not of one kind."""
    documents = [json.loads((folder / JUDGED).read_text()) for folder in folders]
    kinds = {
        (one["made_from"]["start"], one["made_from"]["settings"]["steps"], one["fingerprint"]) for one in documents
    }
    if len(kinds) > 1:
        raise ValueError(f"the runs of {name} differ in start, steps or judge")
    before: Metrics = documents[0]["judged"][START]
    last = [document["judged"][list(document["judged"])[-1]] for document in documents]
    steps = documents[0]["made_from"]["settings"]["steps"]
    rows = [row for folder in folders for row in _rows(folder, steps)]
    work: dict[str, float] = {}
    for line in (line for folder in folders for line in (folder / "work.jsonl").read_text().splitlines()):
        for counter, value in json.loads(line).items():
            work[counter] = work.get(counter, 0.0) + value
    return {
        "name": name,
        "seeds": len(folders),
        "steps": steps,
        "tasks": len(before["reward"]),
        "fingerprint": documents[0]["fingerprint"],
        "before": evaluate.means(before),
        "gains_of_seeds": {metric: [asdict(difference([one], before, metric)) for one in last] for metric in before},
        "course": {
            step: {
                metric: asdict(difference([document["judged"][step] for document in documents], before, metric))
                for metric in before
            }
            for step in documents[0]["judged"]
        },
        "seconds_of_a_step": {
            part: float(np.mean([row["seconds"][part] for row in rows])) for part in rows[0]["seconds"]
        },
        "work": work,
    }


def _rows(folder: Path, steps: int) -> list[dict[str, Any]]:
    """The log of a run, up to the step after which it was judged: it may have gone on from there."""
    return read_log(folder)[:steps]


def _interval(gain: Mapping[str, float]) -> str:
    return f"{gain['value']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]"


def _dynamics(runs: Runs, results: Mapping[str, Any]) -> Figure:
    """Figure 8: what a judge says of held-out edits as training goes on, and what is true of them."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    panels = {
        "reward": "held-out: reward of the judge, gain",
        "true_following": "held-out: true following, gain",
        "true_quality": "held-out: true quality, gain",
    }
    all_axes = figure.subplots(1, len(panels))
    for axes, (metric, title) in zip(all_axes, panels.items(), strict=True):
        for key in runs:
            style = {"color": _COLOURS[key], "linestyle": _LINES[key]}
            _course(axes, results[key]["course"], metric, style, _label(results[key]))
        axes.axhline(0, color="0.8", linewidth=1, zorder=0)
        axes.set_title(title)
        axes.set_xlabel("step")
    figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _label(result: Mapping[str, Any]) -> str:
    """A configuration with the fingerprint of its judge."""
    return f"{result['name']} ({result['fingerprint'][:8]})"


def _course(axes: Axes, course: Mapping[str, Any], metric: str, style: Mapping[str, Any], label: str) -> None:
    steps = [0 if step == START else int(step.removeprefix("step-")) for step in course]
    values = [one[metric] for one in course.values()]
    axes.plot(steps, [value["value"] for value in values], marker="o", markersize=3, label=label, **style)
    low, high = [value["low"] for value in values], [value["high"] for value in values]
    axes.fill_between(steps, low, high, color=style["color"], alpha=0.12, linewidth=0)


def _losses(runs: Runs, results: Mapping[str, Any]) -> Figure:
    """Figure 12: the reward of the training edits and the parts of the loss, averaged over WINDOW steps."""
    figure = Figure(figsize=(11, 5.6), layout="constrained")
    parts: dict[str, Callable[[dict[str, Any]], float]] = {
        "reward of the training edits": lambda row: row["rewards"]["avg"],
        "true following of the training edits": lambda row: row["true_following"],
        "std of rewards in a group": lambda row: row["spread"],
        "policy loss": lambda row: row["policy_loss"],
        "distance from the start (KL)": lambda row: row["kl"],
        "share of ratios clipped": lambda row: row["clipped"],
    }
    for axes, (title, value) in zip(figure.subplots(2, 3).flat, parts.items(), strict=True):
        for key, folders in runs.items():
            for seed, folder in enumerate(folders):
                rows = _rows(folder, results[key]["steps"])
                smooth = np.convolve([value(row) for row in rows], np.ones(WINDOW) / WINDOW, "valid")
                steps = np.arange(len(smooth)) + WINDOW
                label = "" if seed else _label(results[key])
                axes.plot(steps, smooth, color=_COLOURS[key], linestyle=_LINES[key], linewidth=0.9, label=label)
        axes.set_title(title)
        axes.set_xlabel("step")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _last_editor(folder: Path, steps: int) -> Path:
    """The editor that was judged last."""
    return max(file for file in folder.glob("step-*.safetensors") if int(file.stem[5:]) <= steps)


def _save(figure: Figure, file: Path) -> None:
    figure.savefig(file, dpi=110)
    with Image.open(file) as image:
        image.convert("RGB").quantize(128).save(file, optimize=True)
