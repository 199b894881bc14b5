"""What commands print: tables as wide as they need to be, and text that any terminal, file or pipe can take."""

from __future__ import annotations

import codecs
import io
import json
import os
import sys
from typing import Any

import typer
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.table import Table
from typer.core import TyperGroup

_UNBOUNDED = 10_000  # columns: more than any table of ours
_LEAST = 12  # columns for a text, if it has so many
_SPELT_OUT = {"±": "+-", "…": "...", "·": "-", "–": "-", "≥": ">=", "↓": "(less is better)"}
_ERRORS = "jrm-spelt-out"


class CommandGroup(TyperGroup):
    """A command group whose output never ends in a traceback: not for an encoding, a closed pipe or a full disk."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command that the arguments name."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors=_ERRORS)
        try:
            return super().main(*args, **kwargs)
        except OSError as error:
            # Commands report the files that they read and write themselves. This is mostly stdout: on a full disk, say.
            typer.echo(f"jrm: {error}", err=True)
            _drop_output()
            raise SystemExit(1) from None


def _spell_out(error: UnicodeError) -> tuple[str, int]:
    """Replace characters that the output's encoding lacks: by their spelling in ASCII, or their escape."""
    assert isinstance(error, UnicodeEncodeError)
    piece = error.object[error.start : error.end]
    return "".join(_SPELT_OUT.get(c) or c.encode("ascii", "backslashreplace").decode() for c in piece), error.end


codecs.register_error(_ERRORS, _spell_out)


def _drop_output() -> None:
    """Python flushes stdout once more when it ends: what could not be written must not fail a second time."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def literal(text: str) -> str:
    """Return text as a table shows it: undecodable bytes in a file name as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def console() -> Console:
    """The console for stdout: as wide as COLUMNS or the terminal; a file or a pipe has no width to keep to."""
    columns = os.environ.get("COLUMNS", "")
    width = int(columns) if columns.isdecimal() and 0 < len(columns) < 6 else 0
    if width:
        return Console(width=width, height=25)
    return Console() if sys.stdout.isatty() else Console(width=_UNBOUNDED, height=25)


def print_table(table: Table) -> None:
    """Print a table: text folds where the terminal is narrow, and nothing is left out; numbers are never broken.

    A table that is still too wide for the terminal runs over its edge rather than lose a column.
    """
    screen = console()
    for column in table.columns:
        column.overflow = "fold"
        figures = [cell for cell in column.cells if column.justify != "right" or _is_number(cell)]
        width = max((_width(screen, cell) for cell in figures), default=_LEAST)
        column.min_width = width if column.justify == "right" else min(width, _LEAST)
    least = sum(column.min_width or 0 for column in table.columns) + 3 * len(table.columns) + 1
    (screen if screen.width >= least else Console(width=least, height=25)).print(table)


def _is_number(cell: RenderableType) -> bool:
    """Whether it is a figure, and not the reason why there is none."""
    return str(cell)[:1] in {*"0123456789-–["}


def _width(screen: Console, cell: RenderableType) -> int:
    return Measurement.get(screen, screen.options.update(max_width=_UNBOUNDED), cell).maximum


def print_json(value: object, *, indent: int | None = None) -> None:
    """Print strict JSON: as it is where the output takes it, with escapes elsewhere."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, allow_nan=False, indent=indent)
    typer.echo(text)
