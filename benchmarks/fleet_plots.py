"""What ``benchmarks.fleet --save`` has written as PNG files: ``python -m benchmarks.fleet_plots FILE DIR``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure


def draw(results: dict[str, Any], folder: Path) -> list[Path]:
    """Write ``fleet-scaling.png`` and ``fleet-faults.png``; returns them."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    with rc_context({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}):
        for name, figure in (("scaling", _scaling(results["scaling"])), ("faults", _faults(results["faults"]))):
            files.append(folder / f"fleet-{name}.png")
            figure.savefig(files[-1], dpi=120, metadata={"Software": None})
    return files


def _scaling(runs: list[dict[str, Any]]) -> Figure:
    """Lines: what a replica scores in a step, the smallest fleet = 1."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for numbered, label in ((False, "anywhere"), (True, "by number")):
        chosen = [run for run in runs if run["numbered"] == numbered]
        alone = chosen[0]["rate"] / chosen[0]["replicas"]
        counts = [run["replicas"] for run in chosen]
        axes.plot(counts, [run["rate"] / run["replicas"] / alone for run in chosen], "o-", label=label)
    axes.set_xscale("log")
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("replicas")
    axes.set_ylabel("candidates/s of a replica, one alone = 1")
    axes.legend(title="ranks begin", frameon=False)
    return figure


def _faults(runs: list[dict[str, Any]]) -> Figure:
    """Lines: seconds of each step; a cross where a call failed."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for run in runs:
        steps = range(1, 1 + len(run["steps"]))
        [line] = axes.plot(steps, run["steps"], "-", label=run["fault"])
        for step, seconds, failed in zip(steps, run["steps"], run["failed"], strict=True):
            axes.plot(step, seconds, "x" if failed else ".", color=line.get_color())
    axes.set_yscale("log")
    axes.set_xlabel("step; crosses: calls failed")
    axes.set_ylabel("seconds")
    axes.set_yticks([2, 5, 10, 20, 60], ["2", "5", "10", "20", "60"])
    axes.minorticks_off()
    figure.legend(title="one replica", loc="outside upper center", ncols=3, frameon=False)
    return figure


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet_plots", description=__doc__)
    parser.add_argument("file", type=Path, help="what benchmarks.fleet --save has written")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    for file in draw(json.loads(arguments.file.read_text()), arguments.folder):
        print(f"wrote {file.name}")


if __name__ == "__main__":
    main()
