"""What is settled, one JSON line for each critique, written when it is: a run that is killed goes on behind it.

    {"format": "jrm-annotate/1", "settings": {…}}
    {"line": 3, "row": 123, "dimension": "visual_quality", "edit": 0, "critique": {…}, "read": 3, "tries": 1,
     "tokens_in": 1200, "tokens_out": 150, "faults": []}
    {"line": 3, "row": 123, "dimension": "visual_quality", "edit": 1, "critique": null, "read": null, "tries": 3, …,
     "faults": [["reasoning: empty"], …], "answer": "…"}

The settings are what answers depend on; a journal of others is refused.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from jrm_client import jsonl

FORMAT = "jrm-annotate/1"

_STARTS = (b'{"format": "jrm-annotate/', b'{"line": ')  # how every line that we write begins


class JournalError(Exception):
    """The journal is of another run, or none. The message says what to do."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One critique that was accepted, or given up after ``tries`` (then it is None).

    ``read`` is what the blind reading found. ``faults`` has those of each answer that could not be used, ``answer`` the
    last of them. Tokens are of all answers together, ``unmetered`` counts those of which the endpoint did not say it.
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
    def key(self) -> tuple[int, str, int]:
        """Line, dimension and edit: what an entry is about."""
        return self.line, self.dimension, self.edit


class Journal:
    """The settled critiques of one run. Of several entries about the same the last counts."""

    def __init__(self, path: Path, settings: Mapping[str, Any], *, read_only: bool = False) -> None:
        """Open a journal, or begin one. A last line that was cut short is removed; nothing is written if ``read_only``.

        Raises JournalError for one of other settings and for a file that is none, and leaves it as it is; OSError.
        """
        self.path = path
        self._entries: dict[tuple[int, str, int], Entry] = {}
        self._tokens = [0, 0, 0]
        self._file: TextIO | None = None if read_only else _locked(path)
        try:
            torn = self._read(settings) if path.exists() else 0
            if torn and not read_only:
                os.truncate(path, path.stat().st_size - torn)
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

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def get(self, line: int, dimension: str, edit: int) -> Entry | None:
        """The entry about one edit in one dimension."""
        return self._entries.get((line, dimension, edit))

    def append(self, entry: Entry) -> None:
        """Write an entry. When this returns, a killed process has not lost it."""
        self._write(asdict(entry))
        self._add(entry)

    def total(self) -> tuple[int, int, int]:
        """Tokens in, tokens out, and answers that were not metered, of every entry that was ever written."""
        tokens_in, tokens_out, unmetered = self._tokens
        return tokens_in, tokens_out, unmetered

    def _add(self, entry: Entry) -> None:
        self._entries[entry.key] = entry
        for index, count in enumerate((entry.tokens_in, entry.tokens_out, entry.unmetered)):
            self._tokens[index] += count

    def _write(self, value: Mapping[str, Any]) -> None:
        assert self._file is not None
        self._file.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()

    def _read(self, settings: Mapping[str, Any]) -> int:
        """Read what is there, and return how many bytes at its end are a line that was cut short."""
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        torn = data[len(whole) :]
        if not any(torn.startswith(start[: len(torn)]) for start in _STARTS):
            raise JournalError(f"{self.path}: its last line is not one that `jrm annotate` began; use another --out")
        lines = jsonl.lines(io.BytesIO(whole))
        try:
            first = next(lines, None)
            head: dict[str, Any] = {"format": FORMAT, "settings": dict(settings)}
            if first is not None:
                head = jsonl.parse(first.text)
            known = head["settings"]
            if head["format"] != FORMAT or not isinstance(known, dict):
                raise ValueError
            for line in lines:
                self._add(Entry(**jsonl.parse(line.text)))
        except (ValueError, KeyError, TypeError):
            raise JournalError(f"{self.path}: not a journal of `jrm annotate`; use another --out") from None
        changed = sorted(key for key in {*known, *settings} if known.get(key) != settings.get(key))
        if changed:
            raise JournalError(f"{self.path} has answers for another {', '.join(changed)}; use another --out")
        return len(torn)


def _locked(path: Path) -> TextIO:
    """Open to append, for this process alone: two runs would pay for every answer twice."""
    file = path.open("a", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise JournalError(f"{path}: another run is writing to it") from None
    return file
