"""The measurements as PNG files for the documentation: ``python -m benchmarks.plots FILE DIR``."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path
from statistics import median

from matplotlib import rc_context
from matplotlib.figure import Figure

from .contestants import PLAIN
from .results import Measured, read
from .sweeps import ALONE

Results = dict[str, Measured]
_COLOURS = ("#4c72b0", "#dd8452", "#55a868")


def draw(results: Results, folder: Path) -> list[Path]:
    """Write ``performance-comparison.png``, ``performance-group.png`` and ``performance-load.png``; returns them."""
    folder.mkdir(parents=True, exist_ok=True)
    with rc_context({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}):
        return [
            _save(_comparison(results), folder / "performance-comparison.png"),
            _save(_group(results), folder / "performance-group.png"),
            _save(_load(results), folder / "performance-load.png"),
        ]


def _save(figure: Figure, file: Path) -> Path:
    figure.savefig(file, dpi=120, metadata={"Software": None})
    return file


def _comparison(results: Results) -> Figure:
    """Bars: how many times faster than the plain scorer each way is, by layout; whiskers from worst to best round."""
    figure = Figure(figsize=(9, 4.8), layout="constrained")
    axes = figure.subplots()
    names = next(iter(results.values())).compared.names
    width = 0.8 / len(results)
    for number, (layout, measured) in enumerate(results.items()):
        rates = measured.compared
        places = [place + (number - (len(results) - 1) / 2) * width for place in range(len(names))]
        ratios = [rates.ratios(name, PLAIN) for name in names]
        middle = [median(one) for one in ratios]
        whiskers = [
            [m - min(one) for m, one in zip(middle, ratios, strict=True)],
            [max(one) - m for m, one in zip(middle, ratios, strict=True)],
        ]
        axes.bar(places, middle, width, yerr=whiskers, capsize=3, color=_COLOURS[number], label=layout)
        for place, value in zip(places, middle, strict=True):
            axes.annotate(f"{value:.1f}", (place, 0.05), ha="center", color="white", fontsize=9)
    axes.axhline(1, color="gray", linewidth=0.8)
    axes.set_xticks(range(len(names)), [textwrap.fill(name, 13) for name in names])
    axes.set_ylabel("candidates/s, plain scorer = 1")
    axes.set_title("Same weights, same images, same run")
    axes.legend(title="layout", frameon=False)
    return figure


def _group(results: Results) -> Figure:
    """Lines: the cost of a candidate against G, as a share of scoring it alone with the plain scorer."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, (layout, measured) in enumerate(results.items()):
        rates = measured.sizes
        sizes = [name for name in rates.names if name != ALONE]
        costs = [median(rates.ratios(ALONE, name)) for name in sizes]
        axes.plot([int(name) for name in sizes], costs, "o-", color=_COLOURS[number], label=layout)
    ticks = [int(name) for name in sizes]
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, map(str, ticks))
    axes.set_ylim(bottom=0)
    axes.axhline(1, color="gray", linewidth=0.8)
    axes.set_xlabel("edits of a group, G")
    axes.set_ylabel("cost of a candidate, plain scorer = 1")
    axes.set_title("What a candidate costs the engine in a group of G")
    axes.legend(title="layout", frameon=False)
    return figure


def _load(results: Results) -> Figure:
    """Throughput and latency of the service against the number of callers."""
    figure = Figure(figsize=(7, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for number, (layout, measured) in enumerate(results.items()):
        callers = [one.callers for one in measured.loads]
        colour = _COLOURS[number]
        above.plot(callers, [one.rate for one in measured.loads], "o-", color=colour, label=layout)
        below.plot(callers, [one.percentile(50) for one in measured.loads], "o-", color=colour, label="median")
        below.plot(callers, [one.percentile(95) for one in measured.loads], ":", color=colour, label="95th percentile")
    above.set_ylabel("candidates/s")
    above.set_ylim(bottom=0)
    above.set_title("The service under load")
    handles, layouts = above.get_legend_handles_labels()
    below.legend(handles, layouts, title="layout", frameon=False, loc="upper left")  # where no line is
    below.set_ylabel("latency, s: median, dotted 95%")
    below.set_ylim(bottom=0)
    below.set_xlabel("callers, each with one candidate at a time")
    below.set_xscale("log", base=2)
    below.set_xticks(callers, map(str, callers))
    return figure


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plots", description=__doc__)
    parser.add_argument("file", type=Path, help="what benchmarks.compare --save has written")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    for file in draw(read(arguments.file), arguments.folder):
        print(f"wrote {file.name}")


if __name__ == "__main__":
    main()
