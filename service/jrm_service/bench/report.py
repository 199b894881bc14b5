"""The report that ``jrm bench`` prints and saves."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .engine import EngineFigures, Plan
from .server import ServerFigures
from .tables import table

FORMAT = "jrm-bench/1"


@dataclass(frozen=True, slots=True)
class Report:
    """All of a run. ``where`` names hardware and versions, ``model`` what was scored, ``precision`` what in."""

    where: str
    model: str
    fingerprint: str
    precision: str
    plan: Plan
    engine: EngineFigures
    server: ServerFigures

    def to_json(self) -> dict[str, Any]:
        """Every figure, for ``--save``."""
        return {"format": FORMAT, **asdict(self), "seconds_of_a_step": self.seconds_of_a_step}

    @property
    def seconds_of_a_step(self) -> float:
        """What all callers together wait for a step of the paper's size."""
        return self.plan.step_candidates / self.server.rate

    def to_text(self) -> str:
        """Tables, and a last sentence to plan with."""
        return "\n\n".join([self._speed(), self._latency(), self._sizes(), self._fits(), self.sentence()])

    def sentence(self) -> str:
        """How long a step takes here."""
        plan = self.plan
        return (
            f"A step of {plan.step_candidates} candidates ({plan.step_groups} groups of {plan.edits}) takes about "
            f"{_seconds(self.seconds_of_a_step)} on this machine."
        )

    def _speed(self) -> str:
        engine, server = self.engine, self.server
        rows = [
            ["engine, in process", f"{engine.rate:.2f}", "1.00", f"{engine.share:.0%}"],
            [f"server, {server.callers} callers", f"{server.rate:.2f}", f"{server.rate / engine.rate:.2f}", ""],
            ["server, 1 caller", f"{server.alone_rate:.2f}", f"{server.alone_rate / engine.rate:.2f}", ""],
        ]
        title = f"groups of {self.plan.edits}, {self.precision}"
        return table([title, "candidates/s", "to the engine", "of the matrix product"], rows)

    def _latency(self) -> str:
        engine, server = self.engine, self.server
        rows = [
            ["one candidate of a new source", f"{engine.one_ms:.1f}", f"{server.one_ms:.1f}", ""],
            [
                f"a group of {self.plan.edits}",
                f"{engine.group_ms:.1f}",
                f"{server.group_ms:.1f}",
                f"{server.busy_group_ms:.1f}",
            ],
        ]
        headings = ["latency, ms", "engine", "server, 1 caller", f"server, {server.callers} callers"]
        return table(headings, rows)

    def _sizes(self) -> str:
        engine = self.engine
        first = next(iter(engine.sizes.values()))
        rows = [
            [size, f"{rate:.2f}", f"{rate / first:.2f}", f"{engine.sizes_share[size]:.0%}"]
            for size, rate in engine.sizes.items()
        ]
        title = f"edits of a group, G; batches of {max(engine.sizes)}"
        return table([title, "candidates/s", f"to G = {next(iter(engine.sizes))}", "of the matrix product"], rows)

    def _fits(self) -> str:
        engine, server = self.engine, self.server
        groups = f"{engine.batch_groups} group{'s' * (engine.batch_groups != 1)} of {self.plan.edits}"
        lines = [
            f"Matrix product of the model's own shapes: {engine.matrix_product / 1e12:.3g} TFLOP/s.",
            f"What fits: {engine.token_budget:,} tokens a batch, so {groups} here.",
            f"The server was ready after {server.start_s:.0f} s; its rewards are the engine's to {server.apart:.0e}.",
        ]
        if engine.peak_bytes is not None:
            lines.insert(2, f"Weights and batches took {engine.peak_bytes / 2**30:.1f} GiB of the GPU at most.")
        return "\n".join(lines)


def _seconds(seconds: float) -> str:
    """Two digits at most, as one would say it."""
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
