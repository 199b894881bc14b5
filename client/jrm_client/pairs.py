"""One row of a JSONL file of pairs, as ``jrm score`` and ``jrm golden`` read it, and the images that it names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from . import arguments

FIELDS = ("source", "edited", "instruction")


def pair_fields(row: dict[str, Any]) -> dict[str, Any]:
    """Return ``id``, if there is one, and the fields of a pair. Raises ValueError, which names the field at fault."""
    source_paths(row)
    for name in ("edited", "instruction"):
        if not isinstance(row.get(name), str) or not row[name]:
            raise ValueError(f"{name}: missing, empty or not a string")
    arguments.instruction(row["instruction"], "instruction")
    fields = {name: row[name] for name in ("id", *FIELDS) if name in row}
    to_line(fields)  # fails now, and not after the row has been scored
    return fields


def source_paths(row: dict[str, Any]) -> list[str]:
    """Return the paths of a row's source images: its ``source`` is a path, a list of paths, or absent.

    Raises ValueError for anything else.
    """
    source = row.get("source")
    paths = source if isinstance(source, list) else [] if source is None else [source]
    if source == [] or not all(isinstance(path, str) and path for path in paths):
        raise ValueError("source: neither a path nor a list of paths; leave it out where there is no source")
    return paths


def to_line(record: dict[str, Any]) -> str:
    """Return an object as a line of strict JSON. Raises ValueError for what has none."""
    try:
        return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
    except RecursionError:
        raise ValueError("nested too deeply to be written again") from None


def image_file(path: Path) -> bytes:
    """Return the bytes of a regular file: a row may name anything, and reading a device or a pipe may never end."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{str(path)!r}: not a regular file")
    return path.read_bytes()
