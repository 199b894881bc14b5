"""How much host memory this process may still take: of the machine, and under the limits of its cgroups."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2 = ("memory.max", "memory.current", "inactive_file")


def available_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes, at least 0; None on a system that does not report it.

    It is the kernel's own estimate (MemAvailable: file cache that can be dropped counts as free), or the rest under the
    tightest memory limit of this process's cgroups, whichever is less. ``root`` is where ``proc`` and ``sys`` are.
    """
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    left = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    left += _left_in_cgroups(root)
    return max(0, min(left)) if left else None


def _left_in_cgroups(root: Path) -> Iterator[int]:
    """Limit minus usage, for each limit from the process's own cgroup up to the root."""
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _number, controllers, path = line.split(":", 2)
            if controllers == "":
                yield from _left_along(root / "sys/fs/cgroup", path, *_VERSION_2)
            elif "memory" in controllers.split(","):
                yield from _left_along(root / "sys/fs/cgroup/memory", path, *_VERSION_1)


def _left_along(mount: Path, path: str, limit_file: str, usage_file: str, cache_field: str) -> Iterator[int]:
    # In a container the path may be the host's, while only its own cgroup is mounted, as the root.
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
