"""Packs the folder: our own wheel, wheels that the machine lacks, and the sources of the benchmarks."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
CONSTRAINTS = ROOT / "constraints" / "gpu.txt"
EXTRA = "service"
MOST_BYTES = 64 * 2**20
SOURCES = ("benchmarks", "tools/gpu", "examples/photo.jpg")

PRESENT = frozenset(
    {"torch", "transformers", "triton", "numpy", "uvloop"}
    # Dependencies of those, in the versions that they need.
    | {"tokenizers", "safetensors", "huggingface-hub", "packaging", "pyyaml", "regex", "tqdm", "filelock", "jinja2"}
)
"""Packages that are taken from the machine. It may have others, such as pillow, typer or click, but in other versions
than those that pixels and commands are tested with."""

# Extras of uvicorn, for reloading and WebSocket: no benchmark needs either.
_LEFT_OUT = frozenset({"watchfiles", "websockets"})


def pack(out: Path, python: str) -> int:
    """Write the folder; returns its size in bytes. Needs a package registry.

    Raises ValueError when the folder is not empty or becomes too large, and CalledProcessError when pip fails.
    """
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out}: is not empty")
    wheels = out / "wheels"
    wheels.mkdir(parents=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", wheels, ROOT], check=True)
    platform = [f"--platform=manylinux_2_{glibc}_x86_64" for glibc in (28, 27, 17)]
    target = ["--only-binary=:all:", f"--python-version={python}", "--implementation=cp", *platform]
    names = sorted(missing())
    subprocess.run(
        [*pip, "download", "--no-deps", *target, "--constraint", CONSTRAINTS, "--dest", wheels, *names], check=True
    )
    for name in SOURCES:
        _copy(ROOT / name, out / "sources" / name)
    shutil.copy(Path(__file__).with_name("run.py"), out / "run.py")
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    if size > MOST_BYTES:
        raise ValueError(f"{out}: {size / 2**20:.0f} MiB, more than the {MOST_BYTES / 2**20:.0f} that may be carried")
    return size


def missing() -> set[str]:
    """Return the distributions that the server needs and the machine lacks, going by what is installed here."""
    needed_names: set[str] = set()
    waiting = [("jrm-serve", frozenset({EXTRA}))]
    while waiting:
        name, extras = waiting.pop()
        for text in _requirements(name):
            requirement = Requirement(text)
            needed = canonicalize_name(requirement.name)
            if needed in needed_names | PRESENT | _LEFT_OUT or not _applies(requirement, extras):
                continue
            needed_names.add(needed)
            waiting.append((needed, frozenset(requirement.extras)))
    return needed_names


def _requirements(name: str) -> list[str]:
    try:
        return distribution(name).requires or []
    except PackageNotFoundError:
        raise ValueError(
            f"{name} is not installed here, so what it needs is not known: run `make check` once"
        ) from None


def _applies(requirement: Requirement, extras: frozenset[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in extras | {""})


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)
