"""``make rl-demo``: a short Flow-GRPO run, with a live line, and a picture of held-out edits before and after."""

from __future__ import annotations

import argparse
import os
import subprocess
import time
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from . import evaluate
from .experiment import PRETRAINED, command
from .figures import sheet
from .grpo import Settings
from .server import served
from .state import read_log

TASKS = 96


def main() -> None:
    """Train, judge held-out edits before and after, and write the picture of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/rl-demo"))
    parser.add_argument("--steps", type=int, default=40)
    arguments = parser.parse_args()
    out: Path = arguments.out
    settings = Settings(steps=arguments.steps, keep_every=arguments.steps)
    asked = evaluate.held_out(TASKS)
    with served(None, out / "server.log") as url:
        print(f"jrm serve: {url}; log: {out / 'server.log'}", flush=True)
        _train(url, out, settings)
        trained = out / f"step-{settings.steps:04d}.safetensors"
        before, fingerprint = evaluate.judge(url, asked, evaluate.edit(PRETRAINED, asked))
        after, _ = evaluate.judge(url, asked, evaluate.edit(trained, asked))
    print(f"\n{TASKS} held-out tasks, rewards of {fingerprint[:8]}; what is gained, with 95% intervals:")
    for name in before:
        gain = evaluate.difference([after], before, name)
        print(f"  {name:24} {evaluate.means(before)[name]:+.3f} -> {evaluate.means(after)[name]:+.3f}   {gain}")
    sheet({"before": PRETRAINED, "after": trained}).save(out / "edits.png", optimize=True)
    print(f"\nedits before and after: {out / 'edits.png'}")


def _train(url: str, out: Path, settings: Settings) -> None:
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns) as progress:
        bar = progress.add_task("the first step", total=settings.steps)
        with (out / "training.log").open("a") as said:
            program = subprocess.Popen(
                command(url, PRETRAINED, out, settings),
                stdout=said,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
        try:
            while program.poll() is None:
                if rows := read_log(out):
                    row = rows[-1]
                    told = f"reward {row['rewards']['avg']:+.2f}  true following {row['true_following']:.2f}"
                    told += f"  true quality {row['true_quality']:.2f}"
                    progress.update(bar, completed=len(rows), description=told)
                time.sleep(0.5)
        finally:
            program.terminate()
            program.wait()
        progress.update(bar, completed=len(read_log(out)))
    if program.returncode:
        raise SystemExit(f"the run failed; {out / 'training.log'} says why")


if __name__ == "__main__":
    main()
