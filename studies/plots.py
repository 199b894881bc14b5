"""The plots of a study, from its document alone."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from PIL import Image

from .table import display_name, labels

Document = Mapping[str, Any]

# Okabe and Ito's, which colour-blind readers tell apart; the paper's blue and red come first. Hatches, line styles and
# markers say the same again.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
_HATCHES = ("", "//", "..", "xx")
_MARKERS = ("o", "^", "s", "D")
_LINES = ("-", "--", "-.", ":")
_GRAY = "0.45"
_METRICS = {
    "effective_rank": ("effective rank, directions", "{:.1f}"),
    "spectral_entropy": ("spectral entropy, nats", "{:.2f}"),
    "isotropy": ("isotropy, 0 to 1", "{:.3f}"),
}


def draw(study: Document, folder: Path) -> list[Path]:
    """Write ``study-curves.png``, ``study-accuracy.png`` and ``study-representation.png``; returns them."""
    folder.mkdir(parents=True, exist_ok=True)
    with rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}):
        return [
            _save(_curves(study), folder / "study-curves.png"),
            _save(_accuracy(study), folder / "study-accuracy.png"),
            _save(_representation(study), folder / "study-representation.png"),
        ]


def _save(figure: Figure, file: Path) -> Path:
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=110)
    # A palette takes a third of the space; nobody sees the difference in so few colours.
    Image.open(drawn).convert("RGB").quantize(192, dither=Image.Dither.NONE).save(file, optimize=True)
    return file


def _line(number: int) -> dict[str, Any]:
    return {"color": _COLOURS[number % 4], "linestyle": _LINES[number % 4], "linewidth": 1.4}


def _bar(number: int) -> dict[str, Any]:
    return {"color": _COLOURS[number % 4], "hatch": _HATCHES[number % 4], "edgecolor": "white"}


def _beside(number: int, runs: int) -> tuple[float, float]:
    """(shift, width) of a run's bar around each place."""
    width = 0.8 / runs
    return (number - (runs - 1) / 2) * width, width


# --- figures 5 and 10: training ---------------------------------------------------------------------------------------


def _curves(study: Document) -> Figure:
    """Both losses, the norm of the gradient and the accuracy on the batches of training, against the step."""
    figure = Figure(figsize=(9, 6.4), layout="constrained")
    (language, rank), (gradient, accuracy) = figure.subplots(2, 2, sharex=True)
    runs = study["runs"]
    for number, (run, label) in enumerate(zip(runs, labels(runs), strict=True)):
        curves = run["curves"]
        style = {"color": _COLOURS[number % 4], "label": label, "linewidth": 1.4}
        rank.plot(curves["step"], curves["rank"], **style)
        gradient.plot(curves["step"], curves["gradient_norm"], **style)
        if curves["language"] is not None:
            language.plot(curves["step"], curves["language"], **style)
        for line, values in zip(_LINES, curves["accuracy"].values(), strict=False):
            known = [math.nan if value is None else value for value in values]
            accuracy.plot(curves["step"], known, **(style | {"label": None}), linestyle=line)
    for axes in (language, rank, gradient, accuracy):
        for end in runs[0]["curves"]["stages"]:
            axes.axvline(end, color=_GRAY, linewidth=0.7, linestyle=":")
    for axes, unit in ((language, "language loss, nats per token"), (rank, "ranking loss, nats per pair")):
        axes.set_ylabel(unit)
        axes.set_ylim(bottom=0)
    gradient.set_ylabel("gradient norm, before clipping")
    gradient.set_yscale("log")
    gradient.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    gradient.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    gradient.yaxis.set_minor_formatter(NullFormatter())
    accuracy.set_ylabel("pairs in order, share of the batch")
    accuracy.axhline(0.5, color=_GRAY, linewidth=0.7)
    accuracy.set_ylim(top=1)
    for axes in (gradient, accuracy):
        axes.set_xlabel("step")
    rank.axhline(math.log(2), color=_GRAY, linewidth=0.7)  # what knowing nothing costs
    for axes in (rank, language):
        if axes.lines:  # a study of alpha 0 alone has no language loss
            axes.legend()
    for line, name in zip(_LINES, runs[0]["curves"]["accuracy"], strict=False):
        accuracy.plot([], [], color="black", linestyle=line, linewidth=1.4, label=display_name(name))
    accuracy.legend()
    window = runs[0]["curves"]["window"]
    points = f"points are means over {window} steps, " if window > 1 else ""
    stages = "; dotted: the curriculum's next stage" if runs[0]["curves"]["stages"] else ""
    figure.suptitle(f"Training: {points}grey is chance{stages}", fontsize=11)
    return figure


# --- figure 4: accuracy and calibration -------------------------------------------------------------------------------


def _accuracy(study: Document) -> Figure:
    """Above accuracy with intervals for both splits, below the reliability of the win probabilities."""
    figure = Figure(figsize=(9, 7.2), layout="constrained")
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(1, 1.05))[:, 0]
    panels = above.subplots(1, 2, sharey=True)
    titles = {"test": "test split", "unseen": "unseen colour-shape combinations"}
    for axes, (split, title) in zip(panels, titles.items(), strict=True):
        _bars(axes, study, split)
        axes.set_title(title, fontsize=10)
    panels[0].set_ylabel("accuracy")
    above.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    above.suptitle("Pairs in order, and picks that are a best edit; bars: 95% intervals; lines: chance", fontsize=11)
    outputs = [*study["runs"][0]["splits"]["test"]["dimensions"], "reward"]
    for axes, output in zip(below.subplots(1, len(outputs), sharey=True, squeeze=False)[0], outputs, strict=True):
        _reliability(axes, study, output)
        if output == outputs[0]:
            axes.set_ylabel("share that won")
    below.suptitle("Calibration on the test split, in ten bins", fontsize=11)
    return figure


def _bars(axes: Axes, study: Document, split: str) -> None:
    """Pairwise accuracy of each output, and the reward's pick of a group."""
    runs = study["runs"]
    outputs = [*runs[0]["splits"][split]["dimensions"], "reward"]
    for number, (run, label) in enumerate(zip(runs, labels(runs), strict=True)):
        report = run["splits"][split]
        shift, width = _beside(number, len(runs))
        found = [_figures(report, output)["pairwise_accuracy"] for output in outputs]
        found.append(_figures(report, "reward")["pick_of_group"])
        values = [math.nan if estimate["value"] is None else estimate["value"] for estimate in found]
        places = [place + shift for place in range(len(found))]
        axes.bar(places, values, width, label=label, **_bar(number))
        for place, value, estimate in zip(places, values, found, strict=True):
            if estimate["value"] is None:
                continue
            top = value
            if estimate["low"] is not None:
                top = estimate["high"]
                spread = [[max(value - estimate["low"], 0)], [max(top - value, 0)]]
                axes.errorbar(place, value, spread, color="black", linewidth=1, capsize=3)
            axes.annotate(f"{value:.2f}", (place, top + 0.015), ha="center", fontsize=9)
            axes.hlines(estimate["chance"], place - width / 2, place + width / 2, color="black", linestyle=":")
    names = [*(display_name(output) for output in outputs), f"reward's pick of {study['plan']['edits']}"]
    axes.set_xticks(range(len(names)), [_broken(name) for name in names])
    axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    axes.set_ylim(0, 1.1)


def _broken(name: str) -> str:
    """A name in two lines, broken at the blank nearest to its middle."""
    blanks = [place for place, letter in enumerate(name) if letter == " "]
    middle = min(blanks, key=lambda place: abs(place - len(name) / 2), default=len(name))
    return f"{name[:middle]}\n{name[middle + 1 :]}".rstrip()


def _reliability(axes: Axes, study: Document, output: str) -> None:
    runs = study["runs"]
    axes.plot([0, 1], [0, 1], color=_GRAY, linewidth=0.8)
    for number, (run, label) in enumerate(zip(runs, labels(runs), strict=True)):
        report = run["splits"]["test"]
        found = report["reward"] if output == "reward" else report["dimensions"][output]
        bins = [one for one in found["reliability"] if one["count"]]
        error = found["figures"]["calibration_error"]["value"]
        axes.plot(
            [one["predicted"] for one in bins],
            [one["observed"] for one in bins],
            marker=_MARKERS[number % 4],
            markersize=5,
            label=label if error is None else f"{label}: error {error:.3f}",
            **_line(number),
        )
    axes.set_aspect("equal")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_title(display_name(output), fontsize=10)
    axes.set_xlabel("win probability (Eq. 4)")
    axes.legend(fontsize=8, loc="upper left")


def _figures(report: Document, output: str) -> Document:
    found: Document = (report["reward"] if output == "reward" else report["dimensions"][output])["figures"]
    return found


# --- figure 6: representation -----------------------------------------------------------------------------------------


def _representation(study: Document) -> Figure:
    """For each pass: singular values above, three principal components below; the metrics between them."""
    runs = study["runs"]
    names = list(runs[0]["representation"])
    figure = Figure(figsize=(9, 9.6), layout="constrained")
    spectra, bars, clouds = figure.subfigures(3, 1, squeeze=False, height_ratios=(1, 0.85, 1.25))[:, 0]
    _spectra(spectra, runs, names)
    _metrics(bars, runs, names)
    for place, name in enumerate(names, start=1):
        _cloud(clouds, (1, len(names), place), runs, name)
    shown = len(next(iter(runs[0]["representation"].values()))["points"])
    clouds.suptitle(f"Three principal components of {shown:,} edits, turned onto one another (Procrustes)", fontsize=11)
    return figure


def _spectra(figure: SubFigure, runs: Sequence[Document], names: Sequence[str]) -> None:
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        for number, (run, label) in enumerate(zip(runs, labels(runs), strict=True)):
            values = run["representation"][name]["singular_values"]
            visible = [value if value > 1e-6 else math.nan for value in values]
            axes.plot(range(1, len(values) + 1), visible, label=label, **_line(number))
        axes.set_yscale("log")
        axes.set_title(display_name(name), fontsize=10)
        axes.set_xlabel("direction")
    panels[0].set_ylabel("singular value, largest = 1")
    panels[0].legend()
    states = next(iter(runs[0]["representation"].values()))["states"]
    figure.suptitle(f"Singular values of h, {states:,} edits of the test split", fontsize=11)


def _metrics(figure: SubFigure, runs: Sequence[Document], names: Sequence[str]) -> None:
    for axes, (key, (title, form)) in zip(figure.subplots(1, 3), _METRICS.items(), strict=True):
        for number, (run, label) in enumerate(zip(runs, labels(runs), strict=True)):
            shift, width = _beside(number, len(runs))
            values = [run["representation"][name][key] for name in names]
            places = [place + shift for place in range(len(names))]
            drawn = axes.bar(places, values, width, label=label, **_bar(number))
            axes.bar_label(drawn, fmt=form, fontsize=7.5)
        axes.set_xticks(range(len(names)), [_broken(display_name(name)) for name in names], fontsize=8)
        axes.set_title(title, fontsize=10)
        axes.margins(y=0.12)


def _cloud(figure: SubFigure, place: tuple[int, int, int], runs: Sequence[Document], name: str) -> None:
    axes: Any = figure.add_subplot(*place, projection="3d")  # the toolkit of three dimensions has no types
    axes.set_box_aspect(None, zoom=0.82)  # else the third label is cut off
    axes.locator_params(nbins=5)
    for number, (run, label) in enumerate(zip(runs, labels(runs), strict=True)):
        x, y, z = zip(*run["representation"][name]["points"], strict=True)
        style = {"color": _COLOURS[number % 4], "marker": _MARKERS[number % 4]}
        axes.scatter(x, y, z, s=9, alpha=0.75, linewidths=0, depthshade=False, label=label, **style)
    axes.set_title(display_name(name), fontsize=10)
    axes.tick_params(labelsize=7, pad=-2)
    for number, axis in enumerate((axes.xaxis, axes.yaxis, axes.zaxis), start=1):
        axis.set_label_text(f"component {number}", fontsize=8)
        axis.labelpad = -5
