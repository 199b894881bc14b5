"""Builds an image: chooses its base, and lets pip find packages."""

from __future__ import annotations

import ast
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

from .engine import Engine

ROOT = Path(__file__).parents[2]
STAND_IN = "stand-in"
_STAND_IN_IMAGE = "localhost/python-stand-in:bookworm"
_PACKAGES = "python3,python3-pip,python3-venv,ca-certificates"
# Options that say where packages come from. pip's other options concern this machine.
_SOURCES = ("index-url", "extra-index-url", "find-links", "no-index", "trusted-host", "proxy", "cert")


def name_of(target: str) -> str:
    """Name and tag of the image of a target."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return f"jrm-serve:{project['version']}-{target}"


def build(engine: Engine, target: str, base: str | None) -> None:
    """Build the image of a target on a base, the Dockerfile's own unless given. Raises CalledProcessError."""
    flags = ["--network=host", f"--build-arg=REVISION={_revision()}"]
    if base is not None:
        chosen = _stand_in(engine) if base == STAND_IN else base
        # The wheel is built on the CPU's base, whatever the target.
        flags += [f"--build-arg={name}_BASE={chosen}" for name in {"CPU", target.upper()}]
    if engine.mounts_while_building:
        flags.append("--format=docker")  # the OCI format has no health checks
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as configuration:
        settings = _pip_sources()
        if not engine.mounts_while_building:
            settings = {option: value for option, value in settings.items() if not [*_local({option: value})]}
        lines = ["[global]", *(f"{option} = {value}" for option, value in settings.items())]
        configuration.write("\n".join(lines) + "\n")
        configuration.flush()
        flags.append(f"--secret=id=pip.conf,src={configuration.name}")
        if engine.mounts_while_building:
            flags += [f"--volume={path}:{path}:ro" for path in sorted(set(_local(settings)))]
        engine.show("build", "--target", target, "--tag", name_of(target), *flags, str(ROOT))


def _revision() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _pip_sources() -> dict[str, str]:
    """Return this machine's pip options for package sources, so that pip in the image finds packages too."""
    done = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    options: dict[str, dict[str, str]] = {"": {}, ":env:": {}}
    for line in done.stdout.splitlines():
        name, _, value = line.partition("=")
        section, _, option = name.partition(".")
        if option in _SOURCES:
            options[":env:" if section == ":env:" else ""][option] = " ".join(ast.literal_eval(value).split())
    return options[""] | options[":env:"]


def _local(settings: dict[str, str]) -> Iterator[Path]:
    """The files and folders of this machine that the settings name."""
    for option, value in settings.items():
        for word in value.split():
            path = Path(word.removeprefix("file://"))
            if path.is_absolute() and path.exists():
                yield path.parent if option.endswith("index-url") else path  # an index's files lie beside it


def _stand_in(engine: Engine) -> str:
    """Make a base image from Debian packages, as a substitute for an official Python image. Needs root."""
    if engine.status("image", "inspect", _STAND_IN_IMAGE) != 0:
        with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:  # no tmpfs: those often allow no device files
            root = Path(folder) / "root"
            subprocess.run(
                ["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", "bookworm", str(root)], check=True
            )
            archive = Path(folder) / "root.tar"
            subprocess.run(["tar", "--create", "--file", str(archive), "--directory", str(root), "."], check=True)
            engine.show("import", str(archive), _STAND_IN_IMAGE)
    return _STAND_IN_IMAGE
