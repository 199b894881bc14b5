"""Runs Docker or Podman, which take the same commands."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Self

# The hardening that the Compose file and the Helm chart apply.
_HARDENED = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--tmpfs=/tmp", "--tmpfs=/cache")


class Engine:
    """The container engine of this machine: Docker or Podman."""

    def __init__(self, command: Sequence[str], limits: Sequence[str] = ()) -> None:
        self._command = [*command]
        self._limits = [*limits]

    @classmethod
    def find(cls) -> Self:
        """Docker if its engine answers, else Podman. Raises SystemExit without either."""
        if (
            shutil.which("docker")
            and subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0
        ):
            return cls(["docker"])
        if shutil.which("podman") is None:
            raise SystemExit("neither Docker nor Podman is here (Debian: apt-get install podman runc)")
        command = ["podman"]
        if not Path("/sys/fs/cgroup/cgroup.controllers").exists():  # no cgroups v2, which Podman's defaults want
            command += ["--runtime=runc", "--cgroup-manager=cgroupfs"]
        os.environ.setdefault("BUILDAH_ISOLATION", "chroot")  # works in a container or sandbox too
        # By default Podman asks for more than a sandbox may be allowed to.
        return cls(command, ["--ulimit=nofile=4096:4096", "--ulimit=nproc=4096:4096"])

    def __str__(self) -> str:
        return self._command[0]

    @property
    def mounts_while_building(self) -> bool:
        """Whether ``build`` takes ``--volume``."""
        return self._command[0] == "podman"

    def run(self, *arguments: str, stdin: IO[bytes] | None = None) -> str:
        """Return the stdout of a command; its stderr is passed on. Raises CalledProcessError."""
        done = subprocess.run([*self._command, *arguments], stdin=stdin, stdout=subprocess.PIPE, text=True, check=True)
        return done.stdout.strip()

    def show(self, *arguments: str) -> None:
        """Run a command that prints its progress. Raises CalledProcessError."""
        subprocess.run([*self._command, *arguments], check=True)

    def status(self, *arguments: str) -> int:
        """The exit status of a command whose output does not matter."""
        return subprocess.run([*self._command, *arguments], capture_output=True, check=False).returncode

    def start(self, image: str, *flags: str, command: Sequence[str] = (), stdin: IO[bytes] | None = None) -> str:
        """Run an image as in production; return its output, or its id if ``flags`` has ``--detach``."""
        return self.run(
            "run", "--network=host", "--no-healthcheck", *_HARDENED, *self._limits, *flags, image, *command, stdin=stdin
        )
