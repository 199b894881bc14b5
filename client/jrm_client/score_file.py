"""Scoring a JSONL file of pairs into another one, resumably.

A row of the input: ``{"source": path, "edited": path, "instruction": text}``, optionally with an ``"id"``; ``source``
may be a list of paths, or absent for a checkpoint that takes no source. Relative paths are taken from the folder of the
file. A row of the output: ``line`` (counted from 1), the fields of the input, ``status``, ``reward``, ``reward_std``,
``normalized`` where the checkpoint normalizes, ``dimensions``, ``model``, ``fingerprint``. Only scores are written:
what failed is reported, and tried again by the next run.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import jsonl
from .client import JRMClient
from .errors import APIStatusError
from .pairs import FIELDS, image_file, pair_fields, source_paths, to_line
from .report import to_json
from .results import Score

CHUNK = 64  # rows scored, and written, at a time
_REFUSALS_OF_ONE_ROW = frozenset({400, 413})


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the input."""

    line: int
    fields: dict[str, Any]


@dataclass(slots=True)
class Summary:
    """What a run did. ``failed`` maps lines to reasons; ``skipped`` rows had a score already."""

    rows: int = 0
    scored: int = 0
    skipped: int = 0
    failed: dict[int, str] = field(default_factory=dict)


_ROW_START = b'{"line": '  # how every row that we write begins


class JSONLError(Exception):
    """The files do not belong together, or are not what they should be. The message says which line."""


def score_file(
    client: JRMClient, source: Path, output: Path, root: Path | None, advance: Callable[[int, int], None]
) -> Summary:
    """Score the rows of ``source`` that ``output`` lacks, and append them to it.

    ``advance(done, total)`` is called as rows are finished. Bad rows end up in the summary; a failure of the server
    is raised, with everything scored so far in ``output``. Raises JSONLError if ``output`` has scores of other rows or
    of another checkpoint.
    """
    summary = Summary()
    if output.exists() and not output.is_file():
        raise JSONLError(f"{output}: must be a regular file, since a later run reads it to go on where this one ended")
    if output.exists() and output.samefile(source):
        raise JSONLError(f"{output}: is the input; use another output file")
    finished = _finished(output)
    pending: list[Row] = []
    for row in _rows(source, summary):
        if row.line in finished:
            _check_same(row, finished[row.line], output)
            summary.skipped += 1
        else:
            pending.append(row)
    done = summary.rows - len(pending)
    advance(done, summary.rows)
    fingerprint = next((record["fingerprint"] for record in finished.values()), None)
    base = source.parent if root is None else root
    with output.open("a", encoding="utf-8") as file:
        for start in range(0, len(pending), CHUNK):
            chunk = pending[start : start + CHUNK]
            scores = _score(client, chunk, base, summary)
            for score in scores.values():
                fingerprint = fingerprint or score.fingerprint
                if score.fingerprint != fingerprint:
                    raise JSONLError(
                        f"{output} has scores of the checkpoint {fingerprint}, the server now has "
                        f"{score.fingerprint}; use another output file"
                    )
            lines = (
                {"line": row.line, **row.fields, **to_json(scores[row.line])} for row in chunk if row.line in scores
            )
            file.write("".join(to_line(line) for line in lines))
            file.flush()
            summary.scored += len(scores)
            done += len(chunk)
            advance(done, summary.rows)
    return summary


def _rows(path: Path, summary: Summary) -> Iterator[Row]:
    with path.open("rb") as file:
        for line in jsonl.lines(file):
            summary.rows += 1
            try:
                yield Row(line.number, pair_fields(jsonl.parse(line.text)))
            except ValueError as error:
                summary.failed[line.number] = str(error)


def _finished(output: Path) -> dict[int, dict[str, Any]]:
    """The rows that ``output`` holds, by line, after cutting off a last line that a crash left incomplete."""
    if not output.exists():
        return {}
    data = output.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    finished = {}
    for line in jsonl.lines(io.BytesIO(whole)):
        try:
            record = jsonl.parse(line.text)
            finished[int(record["line"])] = record
            _ = record["fingerprint"], record["reward"]
        except (ValueError, KeyError, TypeError):
            where = f"{output}:{line.number}"
            raise JSONLError(f"{where}: not a row that `jrm score` wrote; use another output file") from None
    # Truncated only after these checks: a file that is not ours is refused, and left as it is.
    torn = data[len(whole) :]
    if not torn.startswith(_ROW_START[: len(torn)]):
        raise JSONLError(f"{output}: its last line is not one that `jrm score` began; use another output file")
    if torn:
        os.truncate(output, len(whole))
    return finished


def _check_same(row: Row, record: dict[str, Any], output: Path) -> None:
    if any(record.get(name) != row.fields.get(name) for name in FIELDS):
        raise JSONLError(
            f"{output} has a score for line {row.line}, but for other fields than the input has there now; "
            "use another output file"
        )


def _score(client: JRMClient, rows: Sequence[Row], base: Path, summary: Summary) -> dict[int, Score]:
    """Scores by line. Rows that cannot be read or scored go to the summary."""
    files: dict[str, bytes] = {}
    readable: list[Row] = []
    for row in rows:
        try:
            for path in (*source_paths(row.fields), row.fields["edited"]):
                if path not in files:
                    files[path] = image_file(base / path)
        except (OSError, ValueError) as error:
            summary.failed[row.line] = str(error)
        else:
            readable.append(row)
    scores = {}
    for row, outcome in zip(readable, _ask(client, readable, files), strict=True):
        if isinstance(outcome, Exception) or outcome.error is not None:
            summary.failed[row.line] = str(outcome if isinstance(outcome, Exception) else outcome.error)
        else:
            scores[row.line] = outcome
    return scores


def _ask(client: JRMClient, rows: Sequence[Row], files: dict[str, bytes]) -> list[Score | APIStatusError | ValueError]:
    pairs = [
        (
            [files[path] for path in source_paths(row.fields)] or None,
            files[row.fields["edited"]],
            row.fields["instruction"],
        )
        for row in rows
    ]
    try:
        return list(client.score_batch(pairs, on_error="nan"))
    except (APIStatusError, ValueError) as error:
        if isinstance(error, APIStatusError) and error.status not in _REFUSALS_OF_ONE_ROW:
            raise
        if len(rows) == 1:
            return [error]
    # One bad row had the whole request refused, here or by the server: score each row alone, so the others succeed.
    return [outcome for row in rows for outcome in _ask(client, [row], files)]
