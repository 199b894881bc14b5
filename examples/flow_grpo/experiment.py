"""Table 4 of this world, from nothing: ``python -m examples.flow_grpo.experiment --out out/flow_grpo``.

Every run is a folder, and what is there is not done again: stopped, it goes on where it was, for days if need be. At
the end: ``results.json``, ``table.md`` and the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from . import evaluate, figures, tasks
from .grpo import Settings
from .server import counters, served
from .state import digest, replace

PRETRAINED = Path(__file__).parent / "pretrained.safetensors"
RANKS = 2


@dataclass(frozen=True, slots=True)
class Configuration:
    """A row of the table: whose rewards, and what is made of them. ``alpha_0``: the judge trained without language."""

    name: str
    alpha_0: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)


CONFIGURATIONS = {
    "joint": Configuration("RL, joint judge (α = 0.7)"),
    "alpha-0": Configuration("RL, judge without language (α = 0)", alpha_0=True),
    "shuffled": Configuration("control: joint judge, rewards shuffled", settings={"shuffled": True}),
    "cautious": Configuration("RL, joint judge, mean − 2σ", settings={"std_penalty": 2.0}),
}


def command(url: str, start: Path, out: Path, settings: Settings) -> list[str]:
    """The command that runs what is left of a training run, on RANKS processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
    program = ["-m", "examples.flow_grpo.grpo", "--url", url, "--editor", str(start), "--out", str(out)]
    return [*launcher, *program, *(f"--{name.replace('_', '-')}={value}" for name, value in asdict(settings).items())]


def train(url: str, start: Path, out: Path, settings: Settings) -> None:
    """Run what is left of a training run; what the server did for it is added to ``work.jsonl``.

    Raises CalledProcessError when it fails.
    """
    before = counters(url)
    arguments = command(url, start, out, settings)
    try:
        with subprocess.Popen(arguments, env=os.environ | {"OMP_NUM_THREADS": "1"}) as launcher:
            try:
                code = launcher.wait()
            finally:
                launcher.terminate()  # it ends its ranks; `subprocess.run` would kill it, and they would stay
        if code:
            raise subprocess.CalledProcessError(code, arguments)
    finally:
        done = {name: value - before.get(name, 0.0) for name, value in counters(url).items()}
        with (out / "work.jsonl").open("a") as work:
            work.write(json.dumps(done) + "\n")


def run(folder: Path, configuration: Configuration, judge: Path | None, start: Path, settings: Settings) -> None:
    """One run: trained, and its editors judged on held-out tasks. Raises ValueError for a folder of other settings."""
    made_from = {"settings": asdict(settings), "start": digest(start)}
    done = folder / figures.JUDGED
    if done.exists():
        if json.loads(done.read_text())["made_from"] != made_from:
            raise ValueError(f"{folder} is of other settings or another start: move it, or name another --out")
        return
    print(f"{folder.name}: {configuration.name}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    with served(judge, folder / "server.log") as url:
        train(url, start, folder, settings)
        asked = evaluate.held_out()
        judged = {}
        kept = [file for file in sorted(folder.glob("step-*.safetensors")) if int(file.stem[5:]) <= settings.steps]
        for name, file in [(figures.START, start), *((file.stem, file) for file in kept)]:
            judged[name], fingerprint = evaluate.judge(url, asked, evaluate.edit(file, asked))
            means = evaluate.means(judged[name])
            print(f"  {name}: " + "  ".join(f"{key} {value:.3f}" for key, value in means.items()), flush=True)
    document = {"made_from": made_from, "fingerprint": fingerprint, "judged": judged}
    replace(done, json.dumps(document).encode())


def references(out: Path) -> None:
    """What edits that nobody needs a model for are worth: the source unchanged, and nothing but its background."""
    done = out / figures.REFERENCES
    if done.exists():
        return
    asked = evaluate.held_out()
    sources = np.stack([tasks.source(task) for task in asked])
    blank = np.stack([np.full_like(tasks.source(task), task.scene.background) for task in asked])
    with served(None, out / "server.log") as url:
        judged = {
            name: evaluate.means(evaluate.judge(url, asked, pictures)[0])
            for name, pictures in (("source unchanged", sources), ("everything erased", blank))
        }
    replace(done, json.dumps(judged, indent=1).encode())


def main() -> None:
    """Read the command line; run what is left; write tables and figures."""
    parser = argparse.ArgumentParser(description="Every run of the experiment that is not done yet, then the table.")
    parser.add_argument("--out", type=Path, default=Path("out/flow_grpo"))
    parser.add_argument("--start", type=Path, default=PRETRAINED, help="the pretrained editor")
    parser.add_argument("--alpha-0", type=Path, help="the checkpoint of `jrm train --recipe jrm-tiny --alpha 0`")
    parser.add_argument("--only", nargs="*", choices=CONFIGURATIONS, default=list(CONFIGURATIONS))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=Settings().steps)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server ends too
    arguments.out.mkdir(parents=True, exist_ok=True)
    for seed in range(arguments.seeds):
        for key in arguments.only:
            configuration = CONFIGURATIONS[key]
            if configuration.alpha_0 and arguments.alpha_0 is None:
                print(f"{key}: left out, --alpha-0 names no checkpoint")
                continue
            settings = Settings(steps=arguments.steps, seed=seed, **configuration.settings)
            judge = arguments.alpha_0 if configuration.alpha_0 else None
            run(arguments.out / f"{key}-{seed}", configuration, judge, arguments.start, settings)
    references(arguments.out)
    figures.write(arguments.out, {key: one.name for key, one in CONFIGURATIONS.items()}, arguments.start)


if __name__ == "__main__":
    main()
