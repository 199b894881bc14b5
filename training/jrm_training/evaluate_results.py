"""Scores on disk: one JSON line per group, written as it is scored, so that an interrupted evaluation can go on.

    {"index": 0, "inputs": "…", "model": "…", "fingerprint": "…", "edits": [
        {"status": "ok", "reward": 0.7, "reward_std": 0.2, "dimensions": {"visual_quality": {"mean": 0.5, "std": 0.3}}},
        {"status": "error", "error": {"code": "internal", "message": "…"}}]}

``inputs`` is a hash of the pixels and the instruction. Labels are not in the file: they may be corrected without
scoring anything again.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jrm_client import jsonl
from jrm_service.scoring.types import Dimension, Score

from .data import Group

_ROW_START = b'{"index": '  # the start of every row that we write


class EvaluationError(Exception):
    """The evaluation cannot or must not be made. The message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Failed:
    """An edit without a score: a stable ``code`` (those of the HTTP contract) and a message."""

    code: str
    message: str


Outcome = Score | Failed


def inputs_hash(group: Group) -> str:
    """32 hex digits over all that a score depends on: sizes and pixels of source and edits, and the instruction."""
    digest = hashlib.blake2b(digest_size=16)
    for image in (*group.sources, *(edit.image for edit in group.edits)):
        digest.update(f"{image.mode} {image.width} {image.height}\n".encode())
        digest.update(image.tobytes())
    digest.update(group.instruction.encode())
    return digest.hexdigest()


class ResultsFile:
    """The rows of one checkpoint's scores, by index of the group; safe to append to from several threads."""

    def __init__(self, path: Path, model: str, fingerprint: str) -> None:
        """Read the file if it exists; an incomplete last line is removed.

        Raises EvaluationError for a file that is not ours, or that has scores of another fingerprint, and leaves it as
        it is. Raises OSError for one that cannot be read.
        """
        self.path = path
        self._head = {"model": model, "fingerprint": fingerprint}
        self._rows = _read(path, fingerprint)
        self._lock = threading.Lock()

    def get(self, index: int, inputs: str, edits: int) -> tuple[Outcome, ...] | None:
        """The outcomes of a group that needs no scoring; None if it is new, or if an edit of it failed last time.

        Raises EvaluationError when the row at this index has scores of other inputs.
        """
        row = self._rows.get(index)
        if row is None:
            return None
        if row.inputs != inputs or len(row.outcomes) != edits:
            raise EvaluationError(
                f"{self.path}: group {index} has scores of other images or another instruction than the data has there "
                "now; use another --out"
            )
        return None if any(isinstance(outcome, Failed) for outcome in row.outcomes) else row.outcomes

    def append(self, index: int, inputs: str, outcomes: Sequence[Outcome]) -> None:
        """Write one row. Of several rows of one group, the last counts."""
        row = {"index": index, "inputs": inputs, **self._head, "edits": [_to_json(outcome) for outcome in outcomes]}
        line = json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
        with self._lock, self.path.open("a", encoding="utf-8") as file:
            file.write(line)


@dataclass(frozen=True, slots=True)
class _Row:
    inputs: str
    outcomes: tuple[Outcome, ...]


def _read(path: Path, fingerprint: str) -> dict[int, _Row]:
    if not path.exists():
        return {}
    data = path.read_bytes()
    complete_lines = data[: data.rfind(b"\n") + 1]
    rows: dict[int, _Row] = {}
    for line in jsonl.lines(io.BytesIO(complete_lines)):
        try:
            row = jsonl.parse(line.text)
            other = row["fingerprint"]
            rows[int(row["index"])] = _Row(str(row["inputs"]), tuple(_from_json(edit) for edit in row["edits"]))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise EvaluationError(
                f"{path}:{line.number}: this row was not written by `jrm evaluate`; use another --out"
            ) from None
        if other != fingerprint:
            raise EvaluationError(
                f"{path} has scores of the checkpoint {other}, this one is {fingerprint}; use another --out"
            )
    incomplete_line = data[len(complete_lines) :]
    if not incomplete_line.startswith(_ROW_START[: len(incomplete_line)]):
        raise EvaluationError(f"{path}: its last line was not written by `jrm evaluate`; use another --out")
    if incomplete_line:
        os.truncate(path, len(complete_lines))
    return rows


def _to_json(outcome: Outcome) -> dict[str, Any]:
    if isinstance(outcome, Failed):
        return {"status": "error", "error": {"code": outcome.code, "message": outcome.message}}
    return {
        "status": "ok",
        "reward": outcome.reward,
        "reward_std": outcome.reward_std,
        "dimensions": {name: {"mean": d.mean, "std": d.std} for name, d in outcome.dimensions.items()},
    }


def _from_json(edit: Mapping[str, Any]) -> Outcome:
    if edit["status"] == "error":
        return Failed(str(edit["error"]["code"]), str(edit["error"]["message"]))
    return Score(
        reward=_number(edit["reward"]),
        reward_std=_optional(edit["reward_std"]),
        dimensions={name: Dimension(_number(d["mean"]), _optional(d["std"])) for name, d in edit["dimensions"].items()},
    )


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a finite number")
    return float(value)


def _optional(value: object) -> float | None:
    return None if value is None else _number(value)
