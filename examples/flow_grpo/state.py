"""The folder of a training run: a log with a line for each step, and a state to go on from."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

LOG, STATE = "log.jsonl", "state.pt"


class RunFolder:
    """Of one run, which one process at a time may write. Raises RuntimeError while another one does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self._lock = (path / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise RuntimeError(f"{path}: another run writes there") from None

    def close(self) -> None:
        """Let another process write."""
        self._lock.close()

    def begin(self, step: int) -> None:
        """Forget what the log says of this step and later ones: a run that was killed is ahead of its last state."""
        kept = [row for row in read_log(self.path) if row["step"] < step]
        replace(self.path / LOG, "".join(json.dumps(row) + "\n" for row in kept).encode())

    def add(self, row: Mapping[str, Any]) -> None:
        """Add the row of a step to the log."""
        with (self.path / LOG).open("a") as log:
            log.write(json.dumps(row) + "\n")

    def save(self, state: Mapping[str, Any]) -> None:
        """Keep a state in place of the one before it."""
        partial = self.path / f"{STATE}.partial"
        torch.save(dict(state), partial)
        partial.replace(self.path / STATE)


def read_state(path: Path) -> dict[str, Any] | None:
    """The last state of a run, None for one that has none yet."""
    file = path / STATE
    return torch.load(file, weights_only=True) if file.exists() else None


def read_log(path: Path) -> list[dict[str, Any]]:
    """The rows of a run's log, one for each step that is done; a last line that was cut off is none."""
    file = path / LOG
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def digest(file: Path) -> str:
    """Of a file's content, 16 hex digits."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def replace(file: Path, content: bytes) -> None:
    """Write a file as a whole or not at all."""
    partial = file.with_name(f"{file.name}.partial")
    partial.write_bytes(content)
    partial.replace(file)
