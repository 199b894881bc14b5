"""Writes the rows with their critiques, and the rejected critiques with the reasons."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from jrm_training.rows import to_row

from .jobs import rows
from .journal import Entry, Journal, Settled


def write_output(data: Path, out: Path, journal: Journal, dimensions: Collection[str], limit: int | None = None) -> int:
    """Write the rows of ``data`` with the accepted critiques of the journal to ``out``, and return how many rows.

    New critiques are in the order of ``dimensions``, whichever was answered first. Image paths stay valid:
    relative ones are rewritten to start from the folder of ``out``. The file appears only once it is complete.
    """
    accepted: dict[int, list[Settled]] = {}
    for (line_number, _, _), settled in journal.items():
        if settled.accepted:
            accepted.setdefault(line_number, []).append(settled)
    order = {dimension: number for number, dimension in enumerate(dimensions)}
    count = 0
    with _appearing(out) as file:
        for line, row in rows(data, limit):
            _relocate(row, data.absolute().parent, out.absolute().parent)
            entries = [journal.entry(settled) for settled in accepted.get(line.number, [])]
            for entry in sorted(entries, key=lambda entry: order[entry.dimension]):
                row["edits"][entry.edit].setdefault("critiques", {})[entry.dimension] = entry.critique
            to_row(row, None)  # the result must be valid training data
            _write(file, row)
            count += 1
    return count


def write_rejects(path: Path, entries: Iterable[Entry]) -> None:
    """Write the critiques that were given up, a JSON line each, in the order of the rows; no file if there are none.

    ``reasons`` has the faults of each answer in order, ``answer`` is the last one.
    """
    given_up = sorted(entries, key=lambda entry: entry.key)
    if not given_up:
        path.unlink(missing_ok=True)
        return
    with _appearing(path) as file:
        for entry in given_up:
            _write(
                file,
                {
                    "line": entry.line,
                    "edit": entry.edit,
                    "dimension": entry.dimension,
                    "reasons": entry.faults,
                    "answer": entry.answer,
                },
            )


def _relocate(row: dict[str, Any], old: Path, new: Path) -> None:
    if old == new:
        return

    def moved(path: str) -> str:
        return path if Path(path).is_absolute() else os.path.relpath(old / path, new)

    source = row.get("source")
    if source is not None:
        row["source"] = moved(source) if isinstance(source, str) else [moved(path) for path in source]
    for edit in row["edits"]:
        edit["image"] = moved(edit["image"])


@contextmanager
def _appearing(path: Path) -> Iterator[TextIO]:
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with unfinished.open("x", encoding="utf-8") as file:
            yield file
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _write(file: TextIO, value: Mapping[str, Any]) -> None:
    file.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")
