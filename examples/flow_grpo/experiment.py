"""Table 4 of this world, from nothing: ``python -m examples.flow_grpo.experiment --out out/flow_grpo``.

Every run is a folder, and what is there is not done again: stopped, it goes on where it was, for days if need be. At
the end: ``results.json``, ``table.md`` and the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import evaluate, figures
from .grpo import Settings
from .server import counters, served

PRETRAINED = Path(__file__).parent / "pretrained.safetensors"
RANKS = 2
START = "start"


@dataclass(frozen=True, slots=True)
class Configuration:
    """A row of the table: whose rewards, and what is made of them. ``alpha_0``: the judge trained without language."""

    name: str
    alpha_0: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)


CONFIGURATIONS = {
    "joint": Configuration("RL, joint judge (α = 0.7)"),
    "alpha-0": Configuration("RL, judge without language (α = 0)", alpha_0=True),
    "shuffled": Configuration("control: joint judge, rewards shuffled", settings={"reward": "shuffled"}),
    "cautious": Configuration("RL, joint judge, mean − 2σ", settings={"std_penalty": 2.0}),
}


def command(url: str, start: Path, out: Path, settings: Settings) -> list[str]:
    """The command that runs what is left of a training run, on RANKS processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
    program = ["-m", "examples.flow_grpo.grpo", "--url", url, "--editor", str(start), "--out", str(out)]
    return [*launcher, *program, *(f"--{name.replace('_', '-')}={value}" for name, value in asdict(settings).items())]


def run(folder: Path, configuration: Configuration, judge: Path | None, start: Path, settings: Settings) -> None:
    """One run: trained, and its editors judged on held-out tasks, with what the server counted meanwhile."""
    done = folder / "judged.json"
    if done.exists():
        return
    print(f"{folder.name}: {configuration.name}", flush=True)
    with served(judge, folder / "server.log") as url:
        before = counters(url)
        subprocess.run(command(url, start, folder, settings), check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        after = counters(url)
        asked = evaluate.held_out()
        judged = {}
        for name, file in [
            (START, start),
            *((editor.stem, editor) for editor in sorted(folder.glob("step-*.safetensors"))),
        ]:
            result, fingerprint = evaluate.judge(url, asked, evaluate.edit(file, asked))
            judged[name] = result
            print(
                f"  {name}: " + "  ".join(f"{key} {value:.3f}" for key, value in evaluate.means(result).items()),
                flush=True,
            )
    work = {name: after[name] - before.get(name, 0.0) for name in after}
    document = {"fingerprint": fingerprint, "settings": asdict(settings), "work": work, "judged": judged}
    done.with_suffix(".partial").write_text(json.dumps(document))
    done.with_suffix(".partial").replace(done)


def main() -> None:
    """Read the command line; run what is left; write tables and figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/flow_grpo"))
    parser.add_argument("--start", type=Path, default=PRETRAINED, help="the pretrained editor")
    parser.add_argument(
        "--alpha-0",
        type=Path,
        help="checkpoint: `jrm train --recipe jrm-tiny --alpha 0 --out RUN` makes RUN/checkpoint",
    )
    parser.add_argument("--only", nargs="*", choices=CONFIGURATIONS, default=list(CONFIGURATIONS))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=Settings().steps)
    arguments = parser.parse_args()
    for seed in range(arguments.seeds):
        for key in arguments.only:
            configuration = CONFIGURATIONS[key]
            if configuration.alpha_0 and arguments.alpha_0 is None:
                print(f"{key}: left out, --alpha-0 names no checkpoint")
                continue
            settings = Settings(steps=arguments.steps, seed=seed, **configuration.settings)
            judge = arguments.alpha_0 if configuration.alpha_0 else None
            run(arguments.out / f"{key}-{seed}", configuration, judge, arguments.start, settings)
    figures.write(arguments.out, {key: one.name for key, one in CONFIGURATIONS.items()}, arguments.start)


if __name__ == "__main__":
    main()
