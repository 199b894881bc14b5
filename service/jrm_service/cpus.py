"""The number of CPUs that this process may use, which in a container is not the number of the machine's CPUs."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def usable_cpus(root: Path = Path("/")) -> int:
    """Return how many CPUs this process may use: those it may run on, or fewer if its cgroup has a quota; at least 1.

    ``root`` is where ``proc`` and ``sys`` are.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min([allowed, *_quotas(root)])))


def _quotas(root: Path) -> Iterator[float]:
    """The quotas, in CPUs, of the process's cgroup and of its parents, each of which limits it."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    mounts = root / "sys/fs/cgroup"
    for fields in (line.split(":", 2) for line in lines):
        if len(fields) != 3:
            continue
        _, controllers, path = fields
        place = PurePosixPath(path.removeprefix("/"))
        # A container may see its own group as the root of the mount, under a path that is the host's.
        groups = [place, *place.parents]
        if controllers == "":  # version 2: "QUOTA PERIOD" or "max PERIOD"
            for group in groups:
                yield from _ratio(_words(mounts / group / "cpu.max"))
        elif "cpu" in controllers.split(","):  # version 1: a quota of -1 is none
            for mount in (mounts / controllers, mounts / "cpu"):
                for group in groups:
                    quota = _words(mount / group / "cpu.cfs_quota_us")
                    yield from _ratio(quota + _words(mount / group / "cpu.cfs_period_us"))


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _ratio(words: list[str]) -> Iterator[float]:
    if len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]) > 0:
        yield int(words[0]) / int(words[1])
