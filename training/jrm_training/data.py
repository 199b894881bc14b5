"""Preference data: groups of edits with labels and critiques, read from JSONL files and written to them.

A data set is any ``Sequence[Group]``. ``docs/training-data.md`` has the file format; ``rows.py`` validates a line.
Nothing here needs torch, and everything here can be pickled, so it works in the processes of a ``DataLoader``.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import operator
import secrets
import stat
import zlib
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, SupportsIndex, TypeVar, overload

import numpy as np
import numpy.typing as npt
from PIL import Image

from jrm_client import jsonl
from jrm_client.jsonl import MAX_LINE_BYTES, quoted
from jrm_service.errors import CandidateError
from jrm_service.images.decode import decode, read_header

from .rows import Preference, Row, critique_value, parse_row, to_row

MAX_IMAGE_BYTES = 256 * 2**20  # the largest image that the decoder takes, as an uncompressed 16-bit file, has 192e6
MAX_LISTED = 20
IMAGES = "images"

_AS_LABELS: Mapping[Preference, tuple[float, float]] = {"first": (1.0, 0.0), "second": (0.0, 1.0), "tie": (0.0, 0.0)}
_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True, slots=True)
class Edit:
    """An edited image with what is known about it.

    ``image`` is 8-bit RGB. ``labels`` maps a dimension to a number, higher is better; only comparisons within a group
    are ever made. ``critiques`` maps a dimension to the exact text that the language head should write about it.
    """

    image: Image.Image
    labels: Mapping[str, float] = field(default_factory=dict)
    critiques: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Group:
    """Two or more edits of the same source by one instruction, in the order of the data.

    ``source`` is an image (8-bit RGB), a tuple of several in their order, or None for a text-to-image checkpoint.
    ``preferences`` maps a dimension to the verdict on a group of exactly two edits. It overrides the labels. Raises
    ValueError for preferences on another number of edits.
    """

    source: Image.Image | tuple[Image.Image, ...] | None
    instruction: str
    edits: tuple[Edit, ...]
    preferences: Mapping[str, Preference] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.preferences and len(self.edits) != 2:
            raise ValueError(f"preferences are between two edits, this group has {len(self.edits)}")

    @property
    def sources(self) -> tuple[Image.Image, ...]:
        """The source images: none, one or several."""
        return (self.source,) if isinstance(self.source, Image.Image) else self.source or ()

    def ranking(self, dimension: str) -> tuple[float, ...]:
        """Return a number for each edit, by which the edits compare in a dimension; NaN for an edit without one.

        These are the labels, or what stands for the preference: 1 for the better edit and 0 for the other, equal
        numbers for a tie. Higher is better; nothing but the order has a meaning across groups.
        """
        if dimension in self.preferences:
            return _AS_LABELS[self.preferences[dimension]]
        return tuple(edit.labels.get(dimension, math.nan) for edit in self.edits)


class Problem(NamedTuple):
    """What is wrong with one row. ``line`` is counted from 1, as editors do."""

    line: int
    reason: str


class DataError(ValueError):
    """A preference file with bad rows. ``problems`` has all of them in order of lines, the message the first 20."""

    def __init__(self, path: Path, problems: Sequence[Problem]) -> None:
        super().__init__(path, problems)  # the arguments with which unpickling calls the constructor
        self.path = path
        self.problems = tuple(problems)

    def __str__(self) -> str:
        count = len(self.problems)
        lines = [f"{self.path}: {count} bad row{'s' * (count != 1)}"]
        lines += [f"  line {line}: {reason}" for line, reason in self.problems[:MAX_LISTED]]
        lines += [f"  and {count - MAX_LISTED} more"] * (count > MAX_LISTED)
        return "\n".join(lines)


class GroupFile(Sequence[Group]):
    """The good rows of a preference file, in the order of the file. ``read_groups`` makes one.

    Only an index is in memory, 24 bytes a row and 8 more for each dimension. Every access reads its row again and
    decodes the images, and raises DataError, with the line, for an image that cannot be read and for a row that is
    not the one that was validated. A slice is a GroupFile too and reads nothing.
    """

    def __init__(
        self, path: Path, dimensions: tuple[str, ...], index: npt.NDArray[np.int64], problems: tuple[Problem, ...]
    ) -> None:
        self.path = path
        self.dimensions = dimensions
        self.problems = problems
        self._index = index  # [rows, 3 + dimensions]: byte offset, line, CRC-32 of the line, compared (0 or 1) …

    def __len__(self) -> int:
        return len(self._index)

    @overload
    def __getitem__(self, index: SupportsIndex) -> Group: ...
    @overload
    def __getitem__(self, index: slice) -> GroupFile: ...
    def __getitem__(self, index: SupportsIndex | slice) -> Group | GroupFile:
        if isinstance(index, slice):
            return GroupFile(self.path, self.dimensions, self._index[index], self.problems)
        offset, line, checksum = (int(value) for value in self._index[operator.index(index), :3])
        with self.path.open("rb") as file:
            file.seek(offset)
            text = file.readline(MAX_LINE_BYTES + 1)
        if zlib.crc32(text) != checksum:
            raise DataError(self.path, [Problem(line, "changed since the file was opened")])
        try:
            return _load(parse_row(text, self.dimensions), self.path.parent)
        except ValueError as error:
            raise DataError(self.path, [Problem(line, str(error))]) from None

    def line(self, index: SupportsIndex) -> int:
        """Return the line, counted from 1, that the group of this index stands on."""
        return int(self._index[operator.index(index), 1])

    @property
    def checksum(self) -> str:
        """32 hex digits over the text of the rows in their order. Images are not read: only their paths count."""
        return hashlib.blake2b(np.ascontiguousarray(self._index[:, 2]).tobytes(), digest_size=16).hexdigest()

    @property
    def compared(self) -> dict[str, int]:
        """The number of groups whose edits can be compared, by dimension. A dimension with 0 cannot be learned."""
        return dict(zip(self.dimensions, self._index[:, 3:].sum(axis=0).tolist(), strict=True))


def read_groups(path: str | Path, dimensions: Iterable[str], *, skip_bad: bool = False) -> GroupFile:
    """Validate every row of a preference file, in UTF-8, and open it as a sequence of its groups.

    ``dimensions`` are those of the checkpoint's manifest; other names are refused. Paths of images are relative to the
    folder of the file; each must name a regular file now, and is decoded when its group is asked for.

    Raises DataError if there are bad rows. With ``skip_bad`` they are left out instead, and ``problems`` of the result
    has them. Raises OSError if the file itself cannot be read.
    """
    if isinstance(dimensions, str):
        raise TypeError(f"dimensions={dimensions!r}: expected the names of all dimensions, not one string")
    path = Path(path).absolute()
    names = tuple(dict.fromkeys(dimensions))
    index, problems = array("q"), []
    with path.open("rb") as file:
        for line in jsonl.lines(file):
            try:
                row = parse_row(line.text, names)
                _check_files(row, path.parent)
            except ValueError as error:
                problems.append(Problem(line.number, str(error)))
            else:
                compared = row.compared
                index.extend((line.offset, line.number, zlib.crc32(line.text), *(name in compared for name in names)))
    if problems and not skip_bad:
        raise DataError(path, problems)
    table = np.array(index, dtype=np.int64).reshape(-1, 3 + len(names))
    return GroupFile(path, names, table, tuple(problems))


def write_groups(path: str | Path, groups: Iterable[Group], *, overwrite: bool = False) -> Path:
    """Write groups as a preference file that ``read_groups`` reads back equal, and return its path.

    Images become PNG files in the folder ``images`` beside it, named by a hash of their content: equal images are one
    file, and several preference files may share the folder. The JSONL file appears only once it is complete; after an
    exception there is none, or the previous one. Images that no file refers to any more are not removed.

    Raises FileExistsError for a file that exists, unless ``overwrite``, and ValueError, with the index, for a group
    that the format cannot hold.
    """
    path = Path(path).absolute()
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; pass overwrite=True to replace it")
    (path.parent / IMAGES).mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with unfinished.open("xb") as file:
            for number, group in enumerate(groups):
                try:
                    file.write(_to_line(group, path.parent))
                except (ValueError, CandidateError) as error:
                    raise ValueError(f"groups[{number}]: {error}") from None
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def x_first(box: Sequence[_Number]) -> list[_Number]:
    """Return [xmin, ymin, xmax, ymax] for the [ymin, xmin, ymax, xmax] of appendix A.1; critiques have x first (C.1).

    Raises ValueError unless there are four numbers with each minimum at or below its maximum.
    """
    if len(box) != 4 or not (box[0] <= box[2] and box[1] <= box[3]):
        raise ValueError(f"{list(box)}: not [ymin, xmin, ymax, xmax]")
    ymin, xmin, ymax, xmax = box
    return [xmin, ymin, xmax, ymax]


def _check_files(row: Row, folder: Path) -> None:
    for where, name in row.images().items():
        try:
            found = (folder / name).stat()
        except (OSError, ValueError) as error:  # ValueError: a null character
            raise _unreadable(where, name, error) from None
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"{where}: {quoted(name)}: not a regular file")
        if not 0 < found.st_size <= MAX_IMAGE_BYTES:
            raise ValueError(f"{where}: {quoted(name)}: {found.st_size} bytes, expected 1 to {MAX_IMAGE_BYTES}")


def _load(row: Row, folder: Path) -> Group:
    images = []
    for where, name in row.images().items():
        try:
            images.append(decode((folder / name).read_bytes()))
        except (OSError, ValueError, CandidateError) as error:
            raise _unreadable(where, name, error) from None
    sources, edited = tuple(images[: len(row.source)]), images[len(row.source) :]
    edits = [Edit(image, edit.labels, edit.critiques) for image, edit in zip(edited, row.edits, strict=True)]
    return Group(sources[0] if len(sources) == 1 else sources or None, row.instruction, tuple(edits), row.preferences)


def _unreadable(where: str, name: str, error: Exception) -> ValueError:
    return ValueError(f"{where}: {quoted(name)}: {getattr(error, 'strerror', None) or error}")


def _to_line(group: Group, folder: Path) -> bytes:
    sources = [_write_png(source, folder) for source in group.sources]
    row: dict[str, Any] = {
        **({"source": sources[0] if len(sources) == 1 else sources} if sources else {}),
        "instruction": group.instruction,
        "edits": [
            {
                "image": _write_png(edit.image, folder),
                "labels": dict(edit.labels),
                "critiques": {name: critique_value(text) for name, text in edit.critiques.items()},
            }
            for edit in group.edits
        ],
    }
    if group.preferences:
        row["preferences"] = dict(group.preferences)
    to_row(row, None)
    line = json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(f"a row of {len(line)} bytes, over the limit of {MAX_LINE_BYTES}")
    return line + b"\n"


def _write_png(image: Image.Image, folder: Path) -> str:
    """Write the image to a file, and return its path relative to ``folder``."""
    if image.mode != "RGB":
        raise ValueError(f"an image of mode {image.mode}, expected RGB")
    buffer = io.BytesIO()
    # Through its pixels, because pillow would write metadata too, which differs between images that are the same.
    Image.frombytes("RGB", image.size, image.tobytes()).save(buffer, "PNG")
    data = buffer.getvalue()
    read_header(data)  # refuses what the decoder would refuse
    name = f"{IMAGES}/{hashlib.sha256(data).hexdigest()[:32]}.png"
    unfinished = folder / f"{name}.{secrets.token_hex(4)}"
    unfinished.write_bytes(data)
    unfinished.replace(folder / name)
    return name
