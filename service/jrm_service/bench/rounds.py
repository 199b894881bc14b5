"""Timing that survives a noisy machine: contestants take turns, and ratios are taken within a round."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from statistics import median

from .tables import table

Turn = Callable[[], Sized]
"""Runs one contestant for its turn of a round, and returns an item for each candidate that it scored."""


@dataclass
class Rates:
    """Candidates per second of every contestant in every round, in order."""

    rounds: list[dict[str, float]] = field(default_factory=list)

    def run(self, turns: Mapping[str, Turn]) -> None:
        """Run another round. Every other one goes backwards, so that a drift of the machine's speed favours no one."""
        names = list(turns) if len(self.rounds) % 2 == 0 else list(turns)[::-1]
        rates = {}
        for name in names:
            started = time.perf_counter()
            scored = turns[name]()
            rates[name] = len(scored) / (time.perf_counter() - started)
        self.rounds.append({name: rates[name] for name in turns})

    def add(self, name: str, rates: Sequence[float]) -> None:
        """Add the rates by round of a contestant that ran separately, and sort all contestants by name."""
        for round_rates, rate in zip(self.rounds, rates, strict=True):
            round_rates[name] = rate
        self.rounds = [dict(sorted(round_rates.items())) for round_rates in self.rounds]

    @property
    def names(self) -> list[str]:
        """The contestants, in the order of the first round."""
        return list(self.rounds[0])

    def rate(self, name: str) -> float:
        """Median candidates per second."""
        return median(rates[name] for rates in self.rounds)

    def ratio(self, name: str, base: str) -> float:
        """Median over the rounds of how many times faster ``name`` was than ``base`` in the same round."""
        return median(self.ratios(name, base))

    def ratios(self, name: str, base: str) -> list[float]:
        """How many times faster ``name`` was than ``base``, round by round."""
        return [rates[name] / rates[base] for rates in self.rounds]

    def table(self, title: str, *bases: str, unit: str = "candidates/s") -> str:
        """Medians, median ratios to each base within a round, and the range of the ratios to the first."""
        rows = []
        for name in self.names:
            first = self.ratios(name, bases[0])
            ratios = [f"{self.ratio(name, base):.2f}" for base in bases]
            rows.append([name, f"{self.rate(name):.2f}", *ratios, f"{min(first):.2f}-{max(first):.2f}"])
        return table([title, unit, *(f"to {base}" for base in bases), f"range to {bases[0]}"], rows)
