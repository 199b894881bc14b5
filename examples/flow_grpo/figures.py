"""Tables and figures of the experiment, from its folder alone: what figures 8, 12 and 13 to 16 and table 4 show."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from . import evaluate, tasks
from .evaluate import Figures, difference, estimate
from .grpo import read_log

START = "start"
TRUTHS = ("true_following", "true_right", "true_quality")
RESULTS, TABLE = "results.json", "table.md"
_COLOURS = {"joint": "#0072B2", "alpha-0": "#D55E00", "shuffled": "0.5", "cautious": "#009E73"}
_LINES = {"joint": "-", "alpha-0": "--", "shuffled": ":", "cautious": "-."}
_STYLE: Any = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
_WINDOW = 5  # steps: the reward of a step depends on its tasks as much as on the editor
_CELL, _GAP, _TEXT = 112, 8, 30  # pixels

Runs = dict[str, list[Path]]
"""Configuration -> the folders of its finished runs, one for each seed."""


def write(out: Path, names: Mapping[str, str], start: Path) -> None:
    """Write results.json, table.md and the figures into ``out``, of the runs that are finished there."""
    runs: Runs = {key: sorted(file.parent for file in out.glob(f"{key}-[0-9]*/judged.json")) for key in names}
    runs = {key: folders for key, folders in runs.items() if folders}
    if not runs:
        print("no run is finished yet")
        return
    results = {key: _summary(folders, names[key]) for key, folders in runs.items()}
    (out / RESULTS).write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    (out / TABLE).write_text(table(results))
    print((out / TABLE).read_text())
    with rc_context(_STYLE):
        _save(_dynamics(runs, results), out / "rl-dynamics.png")
        _save(_losses(runs), out / "rl-losses.png")
    editors = {"before": start} | {key: _editors(runs[key][0])[-1] for key in ("joint", "alpha-0") if key in runs}
    sheet(editors).save(out / "rl-edits.png", optimize=True)


def table(results: Mapping[str, Any]) -> str:
    """Table 4 of this world, in Markdown."""
    first = next(iter(results.values()))
    lines = [
        "| configuration | judge | reward of its judge | true following | edits that are right | true quality |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
        "| no RL | | | " + " | ".join(f"{first['before'][name]:.3f}" for name in TRUTHS) + " |",
    ]
    for result in results.values():
        cells = [_cell(result, name) for name in TRUTHS]
        name, judge = f"{result['name']} ({result['seeds']} seeds)", f"`{result['fingerprint'][:8]}`"
        row = [name, judge, _gain(result, "reward")]
        lines.append(f"| {' | '.join(row + cells)} |")
    tasks_told = f"Gains over no RL on {first['tasks']} held-out tasks, with the same noise for each"
    tail = f"{tasks_told}; in brackets 95% intervals, from resampling the tasks."
    return "\n".join(lines) + f"\n\n{tail}\n"


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
    documents = [json.loads((folder / "judged.json").read_text()) for folder in folders]
    before: Figures = documents[0]["judged"][START]
    last = [document["judged"][list(document["judged"])[-1]] for document in documents]
    logs = [read_log(folder) for folder in folders]
    seconds = {
        part: float(np.mean([row["seconds"][part] for log in logs for row in log])) for part in logs[0][0]["seconds"]
    }
    work: dict[str, float] = {}
    for document in documents:
        for counter, value in document["work"].items():
            work[counter] = work.get(counter, 0.0) + value
    return {
        "name": name,
        "seeds": len(folders),
        "steps": documents[0]["settings"]["steps"],
        "tasks": len(before["reward"]),
        "fingerprint": documents[0]["fingerprint"],
        "before": evaluate.means(before),
        "after": {figure: _plain(estimate(np.mean([one[figure] for one in last], axis=0))) for figure in before},
        "gains": {figure: _plain(difference(last, before, figure)) for figure in before},
        "gains_of_seeds": {figure: [_plain(difference([one], before, figure)) for one in last] for figure in before},
        "course": {
            step: {
                figure: _plain(difference([document["judged"][step] for document in documents], before, figure))
                for figure in before
            }
            for step in documents[0]["judged"]
        },
        "seconds_of_a_step": seconds,
        "work": work,
    }


def _plain(one: evaluate.Estimate) -> dict[str, float]:
    return {"value": one.value, "low": one.low, "high": one.high}


def _gain(result: Mapping[str, Any], figure: str) -> str:
    gain = result["gains"][figure]
    return f"{gain['value']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]"


def _cell(result: Mapping[str, Any], figure: str) -> str:
    return f"{result['after'][figure]['value']:.3f}, {_gain(result, figure)}"


def _dynamics(runs: Runs, results: Mapping[str, Any]) -> Figure:
    """Figure 8: what the judge says of the training edits, and what is true of held-out ones, step by step."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    reward, following, quality = figure.subplots(1, 3)
    for key, folders in runs.items():
        style = {"color": _COLOURS[key], "linestyle": _LINES[key]}
        curves = [[row["rewards"]["avg"] for row in read_log(folder)] for folder in folders]
        length = min(map(len, curves))
        mean = np.mean([curve[:length] for curve in curves], axis=0)
        smooth = np.convolve(mean, np.ones(_WINDOW) / _WINDOW, "valid")
        label = f"{results[key]['name']} ({results[key]['fingerprint'][:8]})"
        reward.plot(np.arange(len(smooth)) + _WINDOW, smooth - smooth[0], label=label, **style)
        for axes, name in ((following, "true_following"), (quality, "true_quality")):
            _course(axes, results[key]["course"], name, style)
    reward.set_title("reward of the training edits, gain")
    following.set_title("held-out: true following, gain")
    quality.set_title("held-out: true quality, gain")
    for axes in (reward, following, quality):
        axes.axhline(0, color="0.8", linewidth=1, zorder=0)
        axes.set_xlabel("step")
    figure.legend(*reward.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _course(axes: Axes, course: Mapping[str, Any], name: str, style: Mapping[str, Any]) -> None:
    steps = [0 if step == START else int(step.removeprefix("step-")) for step in course]
    values = [one[name] for one in course.values()]
    axes.plot(steps, [value["value"] for value in values], marker="o", markersize=3, **style)
    low, high = [value["low"] for value in values], [value["high"] for value in values]
    axes.fill_between(steps, low, high, color=style["color"], alpha=0.12, linewidth=0)


def _losses(runs: Runs) -> Figure:
    """Figure 12: the parts of the loss during training."""
    figure = Figure(figsize=(11, 2.8), layout="constrained")
    parts = {
        "policy_loss": "policy loss",
        "kl": "distance from the start (KL)",
        "clipped": "share of ratios clipped",
        "spread": "std of rewards in a group",
    }
    for axes, (part, title) in zip(figure.subplots(1, len(parts)), parts.items(), strict=True):
        for key, folders in runs.items():
            for folder in folders:
                axes.plot(
                    [row[part] for row in read_log(folder)], color=_COLOURS[key], linestyle=_LINES[key], linewidth=0.9
                )
        axes.set_title(title)
        axes.set_xlabel("step")
    return figure


def _editors(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.safetensors"))


def _save(figure: Figure, file: Path) -> None:
    figure.savefig(file, dpi=110)
    with Image.open(file) as image:
        image.convert("RGB").quantize(128).save(file, optimize=True)
