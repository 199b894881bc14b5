"""Groups to score from a file: rows of pairs, as ``jrm score --jsonl`` reads them, or a preference file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image as PILImage

from jrm_client import jsonl
from jrm_client.pairs import image_file, pair_fields, source_paths
from jrm_service.errors import CandidateError
from jrm_service.images.decode import decode
from jrm_training.data import read_groups

from .pictures import Group


@dataclass(frozen=True, slots=True)
class Groups:
    """The number of groups, and a function that iterates over them and reads their images anew each time.

    Iterating raises ValueError for an image that cannot be read.
    """

    number: int
    read: Callable[[], Iterator[Group]]


def read_data(path: Path, dimensions: Iterable[str]) -> Groups:
    """Validate every row of a file of pairs or of preferences; the first row decides which it is.

    Pairs of one source and instruction are a group. ``dimensions`` are the checkpoint's, for the labels of preferences.
    Raises ValueError with every bad row, and OSError for an unreadable file.
    """
    if _is_of_pairs(path):
        groups = _pairs(path)
        return Groups(len(groups), lambda: (_group(path.parent, *group) for group in groups))
    rows = read_groups(path, dimensions)
    return Groups(len(rows), lambda: (Group(row.source, row.instruction, [e.image for e in row.edits]) for row in rows))


def _is_of_pairs(path: Path) -> bool:
    """Anything but a pair counts as a row of a preference file, whose reader gives better errors."""
    with path.open("rb") as file:
        first = next(jsonl.lines(file), None)
    try:
        return first is not None and "edited" in jsonl.parse(first.text)
    except ValueError:
        return False


def _pairs(path: Path) -> list[tuple[tuple[str, ...], str, list[str]]]:
    """(sources, instruction, edits) of each group, in the order in which they first appear."""
    groups: dict[tuple[tuple[str, ...], str], list[str]] = {}
    problems: list[str] = []
    with path.open("rb") as file:
        for line in jsonl.lines(file):
            try:
                row = pair_fields(jsonl.parse(line.text))
            except ValueError as error:
                problems.append(f"{path.name}:{line.number}: {error}")
            else:
                groups.setdefault((tuple(source_paths(row)), row["instruction"]), []).append(row["edited"])
    if problems:
        raise ValueError("\n".join(problems))
    return [(sources, instruction, edits) for (sources, instruction), edits in groups.items()]


def _group(folder: Path, sources: tuple[str, ...], instruction: str, edits: list[str]) -> Group:
    images = tuple(_image(folder, source) for source in sources)
    return Group(images or None, instruction, [_image(folder, edit) for edit in edits])


def _image(folder: Path, name: str) -> PILImage.Image:
    try:
        return decode(image_file(folder / name))
    except (OSError, CandidateError) as error:
        raise ValueError(f"{name}: {getattr(error, 'strerror', None) or error}") from None
