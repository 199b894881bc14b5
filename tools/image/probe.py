"""Runs inside a container with plain Python: prints its rights, or its contents, as JSON.

``rights`` is asked as the image's own user, ``contents`` as root, who sees everything.
"""

import json
import os
import shutil
import sys
from importlib import metadata
from pathlib import Path

VENV = Path("/opt/jrm")
FOLDERS = ("/", "/etc", "/opt", "/opt/jrm", "/opt/jrm/bin", "/usr", "/tmp", "/cache")
TOOLS = ("cc", "gcc", "g++", "c++", "make", "git")
LEFTOVERS = ("/root/.cache", "/install", "/src", "/wheel", "/backend", "/etc/pip.conf")


def rights() -> dict[str, object]:
    """Return the rights of a process in this container."""
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    return {
        "user": [os.getuid(), os.getgid()],
        "capabilities": int(status["CapEff"], 16),
        "no_new_privileges": int(status["NoNewPrivs"]),
        "writable": [folder for folder in FOLDERS if writable(Path(folder))],
    }


def writable(folder: Path) -> bool:
    """Whether a file can be made there."""
    try:
        (folder / "probe").write_text("x")
    except OSError:
        return False
    (folder / "probe").unlink()
    return True


def contents() -> dict[str, object]:
    """Return leftovers, tools, the share of compiled modules, and package versions in this image."""
    [site] = VENV.glob("lib/python3.*/site-packages")
    unwanted = [*VENV.glob("bin/pip*"), *site.glob("tests"), *VENV.rglob(".git"), *Path("/cache").iterdir()]
    return {
        "unwanted": [str(path) for path in (*map(Path, LEFTOVERS), *unwanted) if path.exists()],
        "tools": [tool for tool in TOOLS if shutil.which(tool)],
        "compiled": compiled(site),
        "versions": {package.name: package.version for package in metadata.distributions(path=[str(site)])},
    }


def compiled(site: Path) -> float:
    """Return the share of modules with bytecode that is used without checking its source (PEP 552: the flags are 1)."""
    sources = [path for path in site.rglob("*.py") if path.stat().st_size]
    codes = [path.parent / "__pycache__" / f"{path.stem}.{sys.implementation.cache_tag}.pyc" for path in sources]
    return sum(code.exists() and code.read_bytes()[4:8] == b"\x01\0\0\0" for code in codes) / len(codes)


if __name__ == "__main__":
    print(json.dumps({"rights": rights, "contents": contents}[sys.argv[1]]()))
