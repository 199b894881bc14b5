"""The journal of a run: one JSON line for each settled critique, so that a killed run can be resumed.

    {"format": "jrm-annotate/1", "settings": {…}}
    {"line": 3, "row": 123, "dimension": "visual_quality", "edit": 0, "critique": {…}, "read": 3, "tries": 1,
     "tokens_in": 1200, "tokens_out": 150, "faults": []}
    {"line": 3, "row": 123, "dimension": "visual_quality", "edit": 1, "critique": null, "read": null, "tries": 3, …,
     "faults": [["reasoning: empty"], …], "answer": "…"}

The settings are those that the answers depend on; a journal with other settings is refused.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from jrm_client import jsonl

FORMAT = "jrm-annotate/1"

_STARTS = (b'{"format": "jrm-annotate/', b'{"line": ')  # the start of every line that we write

Key = tuple[int, str, int]  # line, dimension, edit


class JournalError(Exception):
    """The journal belongs to another run, or the file is not a journal. The message says what to do."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One critique that was accepted, or given up after ``tries`` answers (then it is None).

    ``read`` is the result of the blind reading. ``faults`` has the faults of each rejected answer, ``answer`` is the
    last one of them. Tokens are summed over all answers; ``unmetered`` counts answers without a report of their tokens.
    """

    line: int
    row: int
    dimension: str
    edit: int
    critique: dict[str, Any] | None
    read: int | str | None
    tries: int
    tokens_in: int
    tokens_out: int
    unmetered: int = 0
    faults: list[list[str]] = field(default_factory=list)
    answer: str | None = None

    @property
    def key(self) -> Key:
        """Line, dimension and edit: what an entry is about."""
        return self.line, self.dimension, self.edit


@dataclass(frozen=True, slots=True)
class Settled:
    """The part of an entry that is kept in memory, and the offset of the entry in the file."""

    row: int
    accepted: bool
    read: int | str | None
    offset: int


class Journal:
    """The settled critiques of one run. Of several entries about one critique, the last counts."""

    def __init__(self, path: Path, settings: Mapping[str, Any], *, read_only: bool = False) -> None:
        """Open a journal, or start one. An incomplete last line is removed; nothing is written if ``read_only``.

        Raises JournalError for a journal with other settings and for a file that is not a journal, and leaves the file
        unchanged. Raises OSError.
        """
        self.path = path
        self._settled: dict[Key, Settled] = {}
        self._tokens = [0, 0, 0]
        self._file: BinaryIO | None = None if read_only else _locked(path)
        try:
            incomplete_bytes = self._read(settings) if path.exists() else 0
            if incomplete_bytes and not read_only:
                os.truncate(path, path.stat().st_size - incomplete_bytes)
            if self._file is not None and not path.stat().st_size:
                self._write({"format": FORMAT, "settings": dict(settings)})
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def __len__(self) -> int:
        return len(self._settled)

    def items(self) -> Iterable[tuple[Key, Settled]]:
        """Line, dimension and edit of every settled critique, with its outcome."""
        return self._settled.items()

    def get(self, key: Key) -> Settled | None:
        """The outcome for one edit of a line in one dimension."""
        return self._settled.get(key)

    def entry(self, settled: Settled) -> Entry:
        """Read a whole entry."""
        with self.path.open("rb") as file:
            file.seek(settled.offset)
            return Entry(**jsonl.parse(file.readline(jsonl.MAX_LINE_BYTES + 1)))

    def append(self, entry: Entry) -> None:
        """Write an entry. Once this returns, killing the process does not lose it."""
        self._add(entry, self._write(asdict(entry)))

    def total(self) -> tuple[int, int, int]:
        """Tokens in, tokens out and unmetered answers, over every entry ever written."""
        tokens_in, tokens_out, unmetered = self._tokens
        return tokens_in, tokens_out, unmetered

    def _add(self, entry: Entry, offset: int) -> None:
        self._settled[entry.key] = Settled(entry.row, entry.critique is not None, entry.read, offset)
        for index, count in enumerate((entry.tokens_in, entry.tokens_out, entry.unmetered)):
            self._tokens[index] += count

    def _write(self, value: Mapping[str, Any]) -> int:
        """Append a line, and return its offset."""
        assert self._file is not None
        line = (json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n").encode()
        offset = self._file.seek(0, os.SEEK_END)
        self._file.write(line)
        self._file.flush()
        return offset

    def _read(self, settings: Mapping[str, Any]) -> int:
        """Read the file, and return how many bytes at its end are an incomplete line."""
        known: dict[str, Any] | None = None
        incomplete_bytes = 0
        with self.path.open("rb") as file:
            for line in jsonl.lines(file):
                if not line.text.endswith(b"\n"):
                    incomplete_bytes = len(line.text)
                    if not any(line.text.startswith(start[:incomplete_bytes]) for start in _STARTS):
                        raise JournalError(
                            f"{self.path}: its last line was not written by `jrm annotate`; use another --out"
                        )
                    break
                try:
                    value = jsonl.parse(line.text)
                    if known is not None:
                        self._add(Entry(**value), line.offset)
                    elif value["format"] == FORMAT and isinstance(value["settings"], dict):
                        known = value["settings"]
                    else:
                        raise ValueError
                except (ValueError, KeyError, TypeError):
                    raise JournalError(
                        f"{self.path}:{line.number}: not a line of a `jrm annotate` journal; use another --out"
                    ) from None
        changed = sorted(
            key for key in {*(known or settings), *settings} if (known or settings).get(key) != settings.get(key)
        )
        if changed:
            raise JournalError(f"{self.path} has answers for another {', '.join(changed)}; use another --out")
        return incomplete_bytes


def _locked(path: Path) -> BinaryIO:
    """Open the file to append, locked for this process: two runs would pay for every answer twice."""
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise JournalError(f"{path}: another run is writing to it") from None
    return file
