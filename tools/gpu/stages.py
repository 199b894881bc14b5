"""The stages of a run on a GPU machine, each a function from the run to its figures and their text.

``python -m tools.gpu.stages STAGE …``; ``run.py`` starts them. A later stage reads what an earlier one has saved.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmarks.contestants import PLAIN
from benchmarks.models import SIZES, write_checkpoint, write_layout
from benchmarks.padded import PaddedScorer

from benchmarks import peers
from jrm_service.bench.direct import score_alone, score_together
from jrm_service.bench.engine import Measured, Plan, measure_engine
from jrm_service.bench.pictures import Group, Pictures, prepare
from jrm_service.bench.precision import PRECISIONS
from jrm_service.bench.rounds import Rates
from jrm_service.bench.run import where
from jrm_service.bench.server import measure_server
from jrm_service.bench.tables import table
from jrm_service.model.checkpoint_source import CheckpointSource, open_source
from jrm_service.model.devices import release_memory, resolve_device
from jrm_service.scoring.backend import Backend
from jrm_service.scoring.types import Candidate

from .parity import parity
from .profile import profile
from .summary import summary

GROUPS_OF_A_PROFILE = 4
Found = tuple[dict[str, Any], str]
"""A stage's figures, for JSON, and its report as text."""


@dataclass(frozen=True)
class Run:
    """One run: ``results`` is the folder of the results, ``scratch`` that of the checkpoints with random weights."""

    results: Path
    scratch: Path
    device: str
    tiny: bool

    @property
    def plan(self) -> Plan:
        """The paper's job, shortened."""
        if self.tiny:
            return Plan(edits=3, callers=4, side=80, rounds=1, seconds=0.1, sizes=(1, 3))
        return Plan(rounds=2, seconds=3.0)

    @property
    def paper(self) -> Path:
        """The checkpoint with the paper's layout."""
        return self.scratch / "paper"

    @property
    def prompt_first(self) -> Path:
        """The same weights, with the prompt before the images."""
        return self.scratch / "prompt-first"

    @property
    def precision(self) -> str:
        """The precision of the figures, unless a stage uses another one."""
        return "float32" if self.device == "cpu" else "bfloat16"

    def known(self) -> Group:
        """The group whose rewards are compared from stage to stage."""
        return Pictures(self.plan.side, seed=2).group(self.plan.edits)

    def read(self, stage: str) -> Any:
        """Return the figures that a stage has saved."""
        return json.loads((self.results / f"{stage}.json").read_text())

    def load(self, precision: str) -> tuple[CheckpointSource, Backend[Any]]:
        """The paper's checkpoint, ready to score."""
        source = open_source(self.paper, [self.device], engine="trie", **PRECISIONS[precision])
        _, [backend] = source.load(hashed=False)
        return source, backend


def weights(run: Run) -> Found:
    """Write the checkpoints: the 8B shape, in memory."""
    size = SIZES["tiny" if run.tiny else "8b"]
    dtype = torch.float32 if run.tiny else torch.bfloat16
    shutil.rmtree(run.paper, ignore_errors=True)
    shutil.rmtree(run.prompt_first, ignore_errors=True)
    write_checkpoint(run.paper, "paper", size, device=run.device, dtype=dtype)
    write_layout(run.prompt_first, "prompt first", size, run.paper)
    written = sum(file.stat().st_size for file in run.paper.glob("*.safetensors"))
    return {"bytes": written}, f"{written / 1e9:.2f} GB of random weights"


def engine(run: Run, precision: str | None = None) -> Found:
    """The engine in process, both layouts."""
    precision = precision or run.precision
    source, backend = run.load(precision)
    rewards = score_together(backend, prepare(source.preparer, [run.known()]))
    figures = measure_engine(source, backend, run.plan, print)
    prompt_first_source = open_source(run.prompt_first, [run.device], engine="trie", **PRECISIONS[precision])
    prompt_first = Measured(prompt_first_source, backend, run.plan)
    groups = prompt_first.batch_groups(figures.token_budget)
    rate = prompt_first.rate(groups, run.plan.edits)
    share = rate * prompt_first.flops(groups, run.plan.edits) / figures.matrix_product
    rows = [
        ["paper", figures.batch_groups, f"{figures.rate:.2f}", f"{figures.share:.0%}"],
        ["prompt first", groups, f"{rate:.2f}", f"{share:.0%}"],
    ]
    sizes = [[size, f"{by_size:.2f}", f"{figures.sizes_share[size]:.0%}"] for size, by_size in figures.sizes.items()]
    text = "\n\n".join(
        [
            f"{where(run.device)}; matrix product {figures.matrix_product / 1e12:.3g} TFLOP/s",
            table([f"engine, {precision}", "groups a batch", "candidates/s", "of the matrix product"], rows),
            f"one candidate {figures.one_ms:.1f} ms, a group of {run.plan.edits} {figures.group_ms:.1f} ms",
            table(["paper: G", "candidates/s", "of the matrix product"], sizes),
        ]
    )
    saved = asdict(figures) | {"prompt_first": {"rate": rate, "share": share}, "rewards": rewards}
    return saved, text


def fp8(run: Run) -> Found:
    """The engine once more, in fp8, which needs a GPU."""
    if not run.device.startswith("cuda"):
        return {}, f"no fp8 on {run.device}"
    figures, text = engine(run, "fp8")
    ours, theirs = figures["rewards"], run.read("engine")["rewards"]
    moved = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    return figures, f"{text}\n\na reward moves by {moved:.2g} at most"


def profiled(run: Run) -> Found:
    """Where the engine's time goes."""
    source, backend = run.load(run.precision)
    pictures = Pictures(run.plan.side, seed=3)
    batches = [prepare(source.preparer, pictures.groups(GROUPS_OF_A_PROFILE, run.plan.edits)) for _ in range(2)]
    return profile(backend, batches)


def server(run: Run) -> Found:
    """The server over HTTP, with the checkpoint that the engine has scored."""
    known = run.read("engine")
    flags = {"device": run.device} | dict(PRECISIONS[run.precision])
    figures = measure_server(run.paper, flags, run.plan, (run.known(), known["rewards"]), known["rate"], print)
    rows = [
        ["server over engine", f"{figures.rate / known['rate']:.2f}"],
        [f"candidates/s, {figures.callers} callers", f"{figures.rate:.2f}"],
        ["candidates/s, 1 caller", f"{figures.alone_rate:.2f}"],
        ["one candidate, 1 caller, ms", f"{figures.one_ms:.1f}"],
        [f"a group of {run.plan.edits}, 1 caller, ms", f"{figures.group_ms:.1f}"],
        ["ready after, s", f"{figures.start_s:.0f}"],
        ["rewards differ from the engine's by at most", f"{figures.apart:.1e}"],
    ]
    return asdict(figures), table(["server", run.precision], rows)


def compared(run: Run) -> Found:
    """The plain scorer, padded batches and, where it is installed, vLLM, over the engine of this run."""
    known = run.read("engine")
    rates, rewards = _transformers(run)
    if not run.tiny and "vllm" in peers.here():
        plan = run.plan
        job = peers.Job(str(run.paper), run.device, run.precision, plan.rounds, 4, plan.edits, plan.edits, plan.side)
        release_memory(run.device)
        rates[peers.POOLING] = peers.measured(peers.POOLING, job).rates[-1]
    rows = [[name, f"{rate:.2f}", f"{known['rate'] / rate:.2f}"] for name, rate in rates.items()]
    apart = max(abs(ours - theirs) for ours, theirs in zip(rewards, known["rewards"], strict=True))
    text = table([run.precision, "candidates/s", "the engine is faster by"], rows)
    figures = rates | {"engine_differs_by": apart}
    return figures, f"{text}\n\nthe engine's rewards differ from the plain scorer's by {apart:.2g} at most"


def _transformers(run: Run) -> tuple[dict[str, float], list[float]]:
    """Candidates per second one by one and in padded batches, and the rewards of the known group one by one."""
    source = open_source(run.paper, [run.device], engine="plain", **PRECISIONS[run.precision])
    scorer = PaddedScorer(source.checkpoint, run.device, getattr(torch, source.dtype), 1)
    rewards = score_alone(scorer, prepare(source.preparer, [run.known()]))
    pictures = Pictures(run.plan.side, seed=4)

    def sized(size: int, candidates: list[Candidate]) -> list[float]:
        scorer.batch_size = size
        return score_together(scorer, candidates)

    rates = Rates()
    for _ in range(run.plan.rounds):
        candidates = prepare(source.preparer, [pictures.group(run.plan.edits)])
        rates.run({PLAIN: partial(sized, 1, candidates), peers.PADDED: partial(sized, 8, candidates)})
    return {name: rates.rate(name) for name in rates.names}, rewards


def _parity(run: Run) -> Found:
    return parity(run.device)


STAGES: dict[str, Callable[[Run], Found]] = {
    "parity": _parity,
    "weights": weights,
    "engine": engine,
    "profile": profiled,
    "server": server,
    "fp8": fp8,
    "peers": compared,
}


def main() -> None:
    """Run one stage, and save its results. Exits with 1 if they are wrong."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu.stages", description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    run = Run(arguments.results, arguments.scratch, resolve_device(arguments.device), arguments.tiny)
    figures, text = STAGES[arguments.stage](run)
    (run.results / f"{arguments.stage}.json").write_text(json.dumps(figures, indent=1) + "\n")
    (run.results / f"{arguments.stage}.txt").write_text(text + "\n")
    (run.results / "summary.txt").write_text(summary(run.results) + "\n")
    sys.exit(1 if figures.get("wrong") else 0)


if __name__ == "__main__":
    main()
