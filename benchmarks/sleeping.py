"""What a sleep gives back and what a wake costs, at both levels: ``python -m benchmarks.sleeping``.

A server of its own scores a group, is put to sleep, and is woken, a few times; figures are medians. What is held is the
memory of the worker process on a CPU, whose device is the host, and on a GPU what the driver counts for all processes.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Literal

import numpy as np
import torch

from jrm_client import JRMClient
from jrm_service.bench.server import serving
from jrm_service.bench.tables import machine, table

from .models import SIZES, cached_checkpoint

WORKER = b"jrm_service.model.main"
GROUP = 12
LEVELS: tuple[Literal["host", "drop"], ...] = ("host", "drop")


def held(device: str) -> int:
    """Bytes that are held on the device."""
    if device.startswith("cuda"):
        free, total = torch.cuda.mem_get_info(device)
        return total - free
    return sum(_resident(pid) for pid in _descendants(os.getpid()) if WORKER in _command(pid))


def _descendants(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield int(child)
            yield from _descendants(int(child))


def _command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", choices=list(SIZES), default="mid", help="of a checkpoint with random weights")
    parser.add_argument("--checkpoint", type=Path, help="another checkpoint, in place of that")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    checkpoint = options.checkpoint or cached_checkpoint(options.size, "paper")
    random = np.random.default_rng(0)
    source, *edits = random.integers(0, 256, (1 + GROUP, 256, 256, 3), np.uint8)
    rows = []
    flags = {"admin": True, "device": options.device, "cache_entries": 0}
    with serving(checkpoint, flags) as url, JRMClient(url, timeout=600) as client:

        def score() -> float:
            return seconds(lambda: client.score_group(source, "make it blue", edits))

        score()
        for level in LEVELS:
            asleep, awake, going, coming, first, later = [], [], [], [], [], []
            for _ in range(options.times):
                later.append(score())
                awake.append(held(options.device))
                going.append(seconds(lambda: client.sleep(level)))  # noqa: B023 - called here and now
                asleep.append(held(options.device))
                coming.append(seconds(client.wake))
                first.append(score())
            gib = [f"{median(values) / 2**30:.2f}" for values in (awake, asleep)]
            times = [f"{median(values):.2f}" for values in (going, coming, first, later)]
            rows.append([level, *gib, *times])
    print(f"{machine()}; {checkpoint.name} on {options.device}, medians of {options.times}\n")
    headings = ["level", "GiB held", "asleep", "s to sleep", "s to wake", "s for a group of 12 then", "usually"]
    print(table(headings, rows))


if __name__ == "__main__":
    main()
