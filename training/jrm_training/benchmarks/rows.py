"""The rows of a downloaded data set: Parquet as the hub stores it, JSON Lines, or one JSON document."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from jrm_client import jsonl, strict_json
from jrm_client.jsonl import quoted
from jrm_training.data import MAX_IMAGE_BYTES
from jrm_training.evaluate_results import EvaluationError


class RowFile(Protocol):
    """The rows of one file. Reading them in order is fast."""

    path: Path

    def __len__(self) -> int: ...

    def row(self, index: int) -> Mapping[str, Any]:
        """Return a row. Raises ValueError with the reason for one that cannot be read."""
        ...

    def name(self, index: int) -> str:
        """Return what messages and reports call a row."""
        ...


class ParquetRows:
    """A Parquet file. One row group is in memory at a time."""

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow.parquet
        except ImportError:
            raise EvaluationError(
                f"{path}: to read Parquet, pyarrow is needed: pip install 'jrm-serve[parquet]'"
            ) from None
        self.path = path
        try:
            self._file = pyarrow.parquet.ParquetFile(path)
        except pyarrow.ArrowException as error:
            raise EvaluationError(f"{path}: not a Parquet file that can be read: {error}") from None
        metadata = self._file.metadata
        self._places = [
            (group, row)
            for group in range(metadata.num_row_groups)
            for row in range(metadata.row_group(group).num_rows)
        ]
        self._group = -1
        self._table: Any = None

    def __len__(self) -> int:
        return len(self._places)

    def row(self, index: int) -> Mapping[str, Any]:
        """Implements ``RowFile``."""
        import pyarrow

        group, row = self._places[index]
        if group != self._group:
            self._table = None  # two of them need not fit
            try:
                self._table = self._file.read_row_group(group)
            except (pyarrow.ArrowException, OSError) as error:
                raise ValueError(f"row group {group} cannot be read: {error}") from None
            self._group = group
        values: dict[str, Any] = self._table.slice(row, 1).to_pylist()[0]
        return values

    def name(self, index: int) -> str:
        """Implements ``RowFile``; rows count from 0, as the hub's viewer counts them."""
        return f"{self.path.name} row {index}"


class JSONLRows:
    """A JSON Lines file; only the places of its lines are in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            self._lines = [(line.offset, line.number) for line in jsonl.lines(file)]

    def __len__(self) -> int:
        return len(self._lines)

    def row(self, index: int) -> Mapping[str, Any]:
        """Implements ``RowFile``."""
        with self.path.open("rb") as file:
            file.seek(self._lines[index][0])
            return jsonl.parse(file.readline(jsonl.MAX_LINE_BYTES + 1))

    def name(self, index: int) -> str:
        """Implements ``RowFile``; lines count from 1, as editors count them."""
        return f"{self.path.name} line {self._lines[index][1]}"


class JSONRows:
    """One JSON document that has its rows in a list under ``key``."""

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        self._key = key
        try:
            document = strict_json.loads(path.read_bytes())
        except ValueError as error:
            raise EvaluationError(f"{path}: {error}") from None
        rows = document.get(key) if isinstance(document, dict) else None
        if not isinstance(rows, list):
            raise EvaluationError(f"{path}: expected an object with a list '{key}'")
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> Mapping[str, Any]:
        """Implements ``RowFile``."""
        row = self._rows[index]
        if not isinstance(row, dict):
            raise ValueError("not an object")
        return row

    def name(self, index: int) -> str:
        """Implements ``RowFile``."""
        return f"{self.path.name} {self._key}[{index}]"


class Rows:
    """The rows of several files, one after the other."""

    def __init__(self, files: Sequence[RowFile]) -> None:
        self._files = files
        self._places = [(file, index) for file in files for index in range(len(file))]

    def __len__(self) -> int:
        return len(self._places)

    def row(self, index: int) -> Mapping[str, Any]:
        """Return a row. Raises ValueError with the reason for one that cannot be read."""
        file, place = self._places[index]
        return file.row(place)

    def name(self, index: int) -> str:
        """Return what messages and reports call a row: its file, and where it stands in it."""
        file, place = self._places[index]
        return file.name(place)

    def folder(self, index: int) -> Path:
        """Return the folder that paths in this row start from."""
        return self._places[index][0].path.parent

    @property
    def paths(self) -> list[Path]:
        """The files, in the order of their rows."""
        return [file.path for file in self._files]


def open_rows(paths: Iterable[Path], json_key: str) -> Rows:
    """Open files by their suffix; a JSON document has its rows under ``json_key``.

    Raises EvaluationError for a file that is not what it should be, and for Parquet without pyarrow; OSError.
    """
    files: list[RowFile] = []
    for path in paths:
        if path.suffix == ".parquet":
            files.append(ParquetRows(path))
        elif path.suffix == ".jsonl":
            files.append(JSONLRows(path))
        else:
            files.append(JSONRows(path, json_key))
    return Rows(files)


def text(row: Mapping[str, Any], field: str) -> str:
    """Return a text that is not blank. Raises ValueError, with the name of the field."""
    value = _present(row, field)
    if not isinstance(value, str):
        raise ValueError(f"{field}: expected text, got {type(value).__name__}")
    if not value.strip():
        raise ValueError(f"{field}: empty")
    return value


def items(row: Mapping[str, Any], field: str, count: int | None = None) -> list[Any]:
    """Return a list, of ``count`` items if that is given. Raises ValueError, with the name of the field."""
    value = _present(row, field)
    if not isinstance(value, list):
        raise ValueError(f"{field}: expected a list, got {type(value).__name__}")
    if count is not None and len(value) != count:
        raise ValueError(f"{field}: expected {count} items, got {len(value)}")
    return value


def image(value: Any, field: str, folder: Path) -> bytes:
    """Return the file of an image: the hub's ``{"bytes", "path"}``, or a path from ``folder``.

    Raises ValueError, with the name of the field.
    """
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        data: bytes = value["bytes"]
        return _sized(data, field)
    path = value.get("path") if isinstance(value, dict) else value
    if not isinstance(path, str) or not path:
        raise ValueError(f"{field}: no image")
    try:
        return _sized((folder / path).read_bytes(), f"{field}: {quoted(path)}")
    except OSError as error:
        raise ValueError(f"{field}: {quoted(path)}: {error.strerror or error}") from None


def image_field(row: Mapping[str, Any], field: str, folder: Path) -> bytes:
    """Return the file of the image in a field. Raises ValueError, with the name of the field."""
    return image(_present(row, field), field, folder)


def _sized(data: bytes, where: str) -> bytes:
    if not 0 < len(data) <= MAX_IMAGE_BYTES:
        raise ValueError(f"{where}: {len(data)} bytes, expected 1 to {MAX_IMAGE_BYTES}")
    return data


def _present(row: Mapping[str, Any], field: str) -> Any:
    if row.get(field) is None:
        raise ValueError(f"{field}: missing")
    return row[field]
