"""`make bench`: six ways to score, compared in one run on this machine, and what their speed depends on.

Four of them take turns. The two that other people run, padded batches and vLLM's pooling runner where it is installed,
have a process of their own each, before the others begin; their ratios are to the same round of the same run. Prints
Markdown tables with medians and ratios; ``--save`` keeps the numbers for ``benchmarks.plots``.
``--quick`` runs everything on a tiny model in seconds, to show that it works: those numbers mean nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from jrm_service.bench.rounds import Rates
from jrm_service.bench.tables import load, machine
from jrm_service.model.checkpoint import open_checkpoint

from . import peers, sweeps
from .contestants import ENGINE, PLAIN, Contestants, contestants, largest_difference
from .models import LAYOUTS, Layout, cached_checkpoint
from .results import Measured, save


@dataclass(frozen=True)
class Plan:
    """How much is measured. ``side`` is that of the images that callers send, in pixels.

    ``groups`` of a layout make a turn of 15 to 20 seconds on two cores: what the first upload and the last, small batch
    cost is to weigh as little as in a step of the paper, which has 24 groups.
    """

    model: str
    side: int
    rounds: int
    edits: int
    groups: Mapping[Layout, int]
    alone: int
    callers: int
    row_lengths: tuple[int, ...]
    group_sizes: tuple[int, ...]
    loads: tuple[int, ...]


FULL = Plan(
    model="mid",
    side=512,
    rounds=3,
    edits=12,
    groups={"paper": 6, "short": 12, "prompt first": 12},
    alone=4,
    callers=64,
    row_lengths=(1024, 2048, 4096, 8192, 16384),
    group_sizes=(1, 2, 4, 8, 12, 24),
    loads=(1, 4, 16, 64),
)
QUICK = Plan(
    model="tiny",
    side=80,
    rounds=1,
    edits=3,
    groups=dict.fromkeys(LAYOUTS, 2),
    alone=2,
    callers=4,
    row_lengths=(64, 4096),
    group_sizes=(1, 3),
    loads=(1, 4),
)


def measure(layout: Layout, plan: Plan, named: Sequence[str]) -> Measured:
    """Measure one layout beside the ``named`` peers, and print each table as soon as it is known."""
    checkpoint = cached_checkpoint(plan.model, layout)
    job = peers.Job(
        str(checkpoint), "cpu", "float32", plan.rounds, plan.groups[layout], plan.edits, plan.alone, plan.side
    )
    timed = [peers.measured(name, job) for name in named]
    sweep_rounds = max(1, plan.rounds - 1)
    with contestants(checkpoint, edits=plan.edits, side=plan.side, callers=plan.callers) as four:
        compared = _compare(four, timed, layout, plan)
        rows = sweeps.row_lengths(four, open_checkpoint(checkpoint), plan.row_lengths, sweep_rounds)
        print(rows.table(f"{layout}: tokens of a row", sweeps.ALONE) + "\n", flush=True)
        sizes = sweeps.group_sizes(four, plan.group_sizes, sweep_rounds)
        print(sizes.table(f"{layout}: edits of a group", sweeps.ALONE) + "\n", flush=True)
        loads = sweeps.loads(four, plan.loads, at_least=plan.edits)
        print(sweeps.load_table(layout, loads) + "\n", flush=True)
    return Measured(compared, rows, sizes, loads)


def _compare(four: Contestants, timed: Sequence[peers.Peer], layout: Layout, plan: Plan) -> Rates:
    lengths = [sequence.tokens for sequence in four.prepare(four.fresh(1))[0].sequences]
    expected, apart = four.check(peers.known_pictures(plan.side).group(plan.edits))
    apart = max([apart, *(largest_difference(peer.name, peer.rewards, expected) for peer in timed)])
    rates = Rates()
    for _ in range(plan.rounds):
        rates.run(four.turns(plan.groups[layout], plan.alone))
    for peer in timed:
        rates.add(peer.name, peer.rates)
    print(
        f"{layout}: sequences of {' and '.join(map(str, lengths))} tokens, groups of {plan.edits}, {plan.callers} "
        f"callers; all scores agree to {apart:.0e}"
    )
    print("".join(f"{peer.name}: {peer.how}\n" for peer in timed))
    print(rates.table(layout, PLAIN, ENGINE) + "\n", flush=True)
    return rates


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny model: shows that everything works, no more")
    parser.add_argument("--layout", choices=LAYOUTS, action="append", help="repeatable; all when not given")
    parser.add_argument("--save", type=Path, metavar="FILE", help="JSON file for the numbers, as plots.py reads it")
    parser.add_argument("--peer", choices=peers.PEERS, action="append", help="repeatable; all that are installed")
    arguments = parser.parse_args()
    named = [peers.PEERS[name] for name in arguments.peer or peers.here()]
    print(f"{machine()}; torch {torch.__version__}, float32, {torch.get_num_threads()} threads\n", flush=True)
    for layout in arguments.layout or LAYOUTS:
        measured = measure(layout, QUICK if arguments.quick else FULL, named)
        if arguments.save:
            save({layout: measured}, arguments.save)
        print(f"load average {load():.1f} afterwards (by itself the benchmark keeps it near 2)\n", flush=True)


if __name__ == "__main__":
    main()
