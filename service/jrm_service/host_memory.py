"""How much memory of the host this process may still take: what the machine has, and what its cgroup lets it have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2 = ("memory.max", "memory.current", "inactive_file")


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes, at least 0; None on a system that does not say.

    The kernel's own estimate (MemAvailable: file cache that can be dropped counts as free), or what is left under the
    tightest memory limit of the cgroups that this process is in, whichever is less. ``root`` is where ``proc`` and
    ``sys`` are.
    """
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    left = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    left += _left_in_cgroups(root)
    return max(0, min(left)) if left else None


def _left_in_cgroups(root: Path) -> Iterator[int]:
    """Limit less usage, for each limit on the way from the process's own cgroup up to the root."""
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _number, controllers, path = line.split(":", 2)
            if controllers == "":
                yield from _left_along(root / "sys/fs/cgroup", path, *_VERSION_2)
            elif "memory" in controllers.split(","):
                yield from _left_along(root / "sys/fs/cgroup/memory", path, *_VERSION_1)


def _left_along(mount: Path, path: str, limit_file: str, usage_file: str, cache_field: str) -> Iterator[int]:
    # In a container the path may be the host's, of which only the end is mounted, as the root: then it is not there.
    inside = PurePosixPath(path.lstrip("/"))
    folders = [mount] if ".." in inside.parts else [mount / inside, *(mount / above for above in inside.parents)]
    for folder in folders:
        with suppress(OSError):  # no such folder, or no limit at the very top
            limit = (folder / limit_file).read_text().strip()
            if limit == "max":
                continue
            usage = int((folder / usage_file).read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            yield int(limit) - max(0, usage - int(stat.get(cache_field, 0)))
