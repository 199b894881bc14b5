"""How right critiques are, how fast they are written, and what they cost those who score; in one run, on this machine.

Starts a server with the bundled checkpoint (``--serve score,explain``), or asks one that runs. Edits are of the
synthetic world's test split, which no training has seen.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from jrm_client import AsyncJRMClient
from jrm_service.bench.server import TIMEOUT_S, serving
from jrm_service.bench.tables import load, machine, table
from jrm_service.model.checkpoint import Checkpoint, open_checkpoint
from jrm_service.model.checkpoint_source import BUNDLED
from jrm_training.bootstrap import Estimate
from jrm_training.data import Group
from jrm_training.world import World

from .critiques import Written, figures, through_the_server, unconstrained
from .doc_tables import put
from .interference import ALONE, EXPLAINING, Interference, measure

MARK = "explain"
EDITS = 4  # of a group
STRUCTURED, FREE = "structured output, over HTTP", "unconstrained"
NAMES = {
    "ok": "status ok",
    "regions_found": "true regions found, IoU ≥ 0.5",
    "regions_made_up": "regions made up ↓",
    "verdict_right": "verdict is the true label",
    "same": "the text is the same in both",
}


@dataclass(frozen=True)
class Plan:
    """How much is measured: timed calls in half a round, rounds, and callers that explain meanwhile."""

    calls: int
    rounds: int
    callers: int


@dataclass(frozen=True)
class Measured:
    """One run. ``rates`` are tokens per second, ``figures`` by dimension and name; both by way of writing."""

    about: str
    edits: int
    rates: Mapping[str, float]
    figures: Mapping[str, Mapping[str, Mapping[str, Estimate]]]
    scoring: Interference
    plan: Plan

    def report(self) -> str:
        """Two Markdown tables, and what must be said of them."""
        return "\n".join(
            [
                self._critiques(),
                "",
                "In brackets: 95% intervals, from resampling the groups. ↓: lower is better.",
                "",
                self._latency(),
                "",
                f"{self.scoring.calls} calls of each kind by one caller, in {self.plan.rounds} rounds that take turns; "
                f"ratios are within a round. {self.scoring.explained} edits were explained meanwhile. Every score was "
                "equal to the last bit.",
                "",
                self.about,
            ]
        )

    def numbers(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)

    def _critiques(self) -> str:
        structured, free = self.figures[STRUCTURED], self.figures[FREE]
        rows = [
            [f"{dimension.replace('_', ' ')}: {NAMES[name]}", _cell(estimate), _cell(free[dimension][name])]
            for dimension, of_dimension in structured.items()
            for name, estimate in of_dimension.items()
        ]
        rows.append(["tokens written per second", *(f"{self.rates[way]:.0f}" for way in (STRUCTURED, FREE))])
        return table([f"critiques of {self.edits} edits of the test split", STRUCTURED, FREE], rows)

    def _latency(self) -> str:
        rows = []
        for share in (50, 95):
            ratios = self.scoring.ratios(share)
            times = [f"{1e3 * self.scoring.percentile(name, share):.1f}" for name in (ALONE, EXPLAINING)]
            median = f"{self.scoring.ratio(share):.2f}"
            rows.append([f"p{share}, ms", *times, median, f"{min(ratios):.2f}-{max(ratios):.2f}"])
        return table(["`/score`, one candidate", ALONE, f"{self.plan.callers} callers explain", "ratio", "range"], rows)


def _cell(estimate: Estimate) -> str:
    if estimate.value is None:
        return "–"
    return f"{estimate.value:.3f}" + (f" [{estimate.low:.3f}, {estimate.high:.3f}]" if estimate.low is not None else "")


def run(url: str, checkpoint: Checkpoint, groups: Sequence[Group], plan: Plan) -> Measured:
    """Measure a server of this checkpoint, and the same language head without one.

    Raises ValueError where the server has another checkpoint, RuntimeError where explaining changes a score.
    """
    about = f"{checkpoint.manifest.name}, fingerprint {checkpoint.fingerprint}; {machine()}; torch {torch.__version__}"
    regions = {name: one.regions for name, one in checkpoint.manifest.explain.items()}
    structured, scoring = asyncio.run(_ask(url, checkpoint.fingerprint, groups, plan))
    free = unconstrained(checkpoint, groups)
    return Measured(
        about=about,
        edits=sum(len(group.edits) for group in groups),
        rates={STRUCTURED: structured.rate, FREE: free.rate},
        figures={
            STRUCTURED: figures(groups, structured, free, regions),
            FREE: figures(groups, free, structured, regions),
        },
        scoring=scoring,
        plan=plan,
    )


async def _ask(url: str, fingerprint: str, groups: Sequence[Group], plan: Plan) -> tuple[Written, Interference]:
    pairs = [(group.source, edit.image, group.instruction) for group in groups for edit in group.edits]
    async with AsyncJRMClient(url, timeout=TIMEOUT_S) as client:
        served = (await client.info())["fingerprint"]
        if served != fingerprint:
            raise ValueError(f"{url} serves {served}, the checkpoint here is {fingerprint}")
        written = await through_the_server(client, groups)
        return written, await measure(client, pairs[: plan.calls], rounds=plan.rounds, callers=plan.callers)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.explain", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", default=BUNDLED, help="the bundled one by default")
    parser.add_argument("--url", help="a server that scores and explains it, started with --cache-entries 0")
    parser.add_argument("--edits-total", type=int, default=100, metavar="N", help=f"explained, in groups of {EDITS}")
    parser.add_argument("--calls", type=int, default=40, metavar="N", help="timed calls of /score in half a round")
    parser.add_argument("--rounds", type=int, default=6, metavar="N", help="of scoring alone and while explaining")
    parser.add_argument("--background", type=int, default=4, metavar="N", help="callers that explain meanwhile")
    parser.add_argument("--save", type=Path, metavar="FILE", help="JSON file for the numbers")
    parser.add_argument("--page", type=Path, metavar="FILE", help="Markdown page to put the tables into")
    arguments = parser.parse_args()
    logging.disable_progress_bar()  # of loading weights
    world = World(max(1, arguments.edits_total // EDITS), seed=6, split="test", edits=EDITS)
    plan = Plan(arguments.calls, arguments.rounds, arguments.background)
    own = serving(arguments.checkpoint, {"device": "cpu", "serve": "score,explain", "cache_entries": 0})
    with nullcontext(arguments.url) if arguments.url else own as url:
        measured = run(url, open_checkpoint(arguments.checkpoint), world[:], plan)
    print(f"{measured.report()}\n\nload average {load():.1f} afterwards")
    if arguments.save:
        arguments.save.write_text(json.dumps(measured.numbers(), indent=1) + "\n")
    if arguments.page:
        put(arguments.page, MARK, measured.report())


if __name__ == "__main__":
    main()
