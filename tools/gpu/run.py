"""Runs all measurements of a GPU in one go: ``python3 run.py --results DIR`` in a packed folder.

Only the standard library is imported here: the wheels beside this file are first installed where the stages find them.
Then the stages run in order, each in its own process, parity first. Each stage saves its results as JSON and text when
it is done, so a time limit, or a failing stage, loses only the rest. ``--tiny --device cpu`` tries all of it where
there is no GPU: those figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
ROOM = 20 * 2**30  # bytes: the weights of the 8B shape take 17.5 GB
STAGES = ("parity", "weights", "engine", "profile", "server", "fp8", "peers")


def main() -> int:
    """The command line; 1 when a stage has failed or was cut."""
    parser = argparse.ArgumentParser(prog="python3 run.py", description=__doc__)
    parser.add_argument("--results", type=Path, required=True, help="folder for the results of the stages")
    parser.add_argument("--device", default="cuda:0", help="cuda:0 or cpu")
    parser.add_argument("--tiny", action="store_true", help="a tiny checkpoint and few candidates: shows that it works")
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="time limit for everything; stages not done by then are cut"
    )
    parser.add_argument("--stage", choices=STAGES, action="append", help="repeatable; all when not given")
    arguments = parser.parse_args()
    deadline = time.monotonic() + 60 * arguments.minutes
    results = arguments.results.resolve()
    results.mkdir(parents=True, exist_ok=True)
    stages = arguments.stage or STAGES
    for old in [
        results / "summary.txt",
        *(results / f"{stage}.{kind}" for stage in stages for kind in ("json", "txt")),
    ]:
        old.unlink(missing_ok=True)  # so that all results are of this run
    # Packages lie elsewhere: Docker mounts /dev/shm so that nothing in it can be executed.
    with tempfile.TemporaryDirectory() as packages, tempfile.TemporaryDirectory(dir=_memory()) as scratch:
        environment = _installed(Path(packages))
        options = ["--results", str(results), "--scratch", scratch, "--device", arguments.device]
        options += ["--tiny"] * arguments.tiny
        statuses: dict[str, dict[str, object]] = {}
        for stage in stages:
            started = time.monotonic()
            status = _run(stage, options, environment, results, deadline)
            statuses[stage] = {"status": status, "seconds": round(time.monotonic() - started, 1)}
            (results / "stages.json").write_text(json.dumps(statuses, indent=1) + "\n")
            text = results / f"{stage}.txt"
            print(f"== {stage}: {status}, {statuses[stage]['seconds']} s\n", flush=True)
            if text.exists():
                print(text.read_text(), flush=True)
    if (results / "summary.txt").exists():
        print((results / "summary.txt").read_text(), flush=True)
    return int(any(stage_status["status"] != "done" for stage_status in statuses.values()))


def _memory(folder: str = "/dev/shm") -> str | None:  # noqa: S108 - a name of its own is made in it
    """Return a folder in memory, if there is one with room: a checkpoint is written there in seconds."""
    roomy = os.access(folder, os.W_OK) and shutil.disk_usage(folder).free > ROOM
    return folder if roomy else None


def _installed(target: Path) -> dict[str, str]:
    """The environment of the stages. ``python3`` may itself be a virtual environment, so this one is a folder."""
    wheels = [str(wheel) for wheel in sorted((HERE / "wheels").glob("*.whl"))]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, "--no-index", "--no-deps", "--target", str(target), *wheels], check=True)
    paths = [str(target), str(HERE / "sources"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def _run(stage: str, options: list[str], environment: dict[str, str], results: Path, deadline: float) -> str:
    """Run a stage; ``done``, ``failed`` or ``cut``. Its output is kept, and the end of it printed if it fails."""
    log = results / f"{stage}.log"
    left = deadline - time.monotonic()
    if left <= 0:
        return "cut"
    command = [sys.executable, "-m", "tools.gpu.stages", stage, *options]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=results, start_new_session=True
        )
        try:
            status = "failed" if process.wait(left) else "done"
        except subprocess.TimeoutExpired:
            status = "cut"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # servers and workers that it has started, too
                process.wait()
    if status != "done":
        print("\n".join(log.read_text(errors="replace").splitlines()[-20:]), flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
