"""The critiques to write: one for each edit in each dimension in which people judged it. Pure, except for reading."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jrm_client import jsonl
from jrm_training.data import DataError, Problem, read_groups
from jrm_training.rows import Preference, Row, to_row

Kind = Literal["following", "quality"]
Verdict = Literal["better", "worse", "equal"]

KINDS: Mapping[str, Kind] = {"instruction_following": "following", "visual_quality": "quality"}
"""The template of each of the paper's dimensions: with instruction and regions (A.1), or of the edit alone (A.2)."""

BEST = 4.0  # scores are 1 to 4, as in the paper

_VERDICTS: Mapping[Preference, tuple[Verdict, Verdict]] = {
    "first": ("better", "worse"),
    "second": ("worse", "better"),
    "tie": ("equal", "equal"),
}


@dataclass(frozen=True, slots=True)
class Scale:
    """The labels of the worst and the best edits; they become scores from 1 to 4, linearly."""

    low: float = 1.0
    high: float = BEST

    def score(self, label: float) -> float:
        """The score of a label, to two decimals. Raises ValueError for one outside the scale."""
        if not self.low <= label <= self.high:
            raise ValueError(
                f"{label:g} is not on the scale of {self.low:g} to {self.high:g}; set another with --scale"
            )
        return round(1 + (BEST - 1) * (label - self.low) / (self.high - self.low), 2)


@dataclass(frozen=True, slots=True)
class Judgement:
    """How people judged an edit: by a ``score`` from 1 to 4, or, without labels, beside the row's other edit."""

    score: float | None = None
    verdict: Verdict | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """The edits of one row that need a critique in one dimension; ``edits`` maps their index to how they were judged.

    ``row`` is a checksum by which another run recognizes the row.
    """

    line: int
    row: int
    dimension: str
    kind: Kind
    instruction: str
    sources: tuple[str, ...]
    images: tuple[str, ...]
    edits: Mapping[int, Judgement]


def read_jobs(path: Path, kinds: Mapping[str, Kind], scale: Scale, limit: int | None = None) -> list[Job]:
    """Plan the critiques that the rows of a preference file lack, in the order of the file.

    Raises DataError with every bad row, including labels outside the scale and rows that compare nothing. Raises
    OSError.
    """
    read_groups(path, _dimensions(path))  # finds everything that training would object to
    jobs: list[Job] = []
    problems = []
    for line, row in rows(path, limit):
        try:
            jobs += _jobs(line, row, kinds, scale)
        except ValueError as error:
            problems.append(Problem(line.number, str(error)))
    if problems:
        raise DataError(path, problems)
    return jobs


def rows(path: Path, limit: int | None = None) -> Iterator[tuple[jsonl.Line, dict[str, Any]]]:
    """The lines of a file with their JSON objects, ``limit`` at most. Raises ValueError for a line that is not one."""
    with path.open("rb") as file:
        for number, line in enumerate(jsonl.lines(file)):
            if limit is not None and number >= limit:
                return
            yield line, jsonl.parse(line.text)


def _dimensions(path: Path) -> list[str]:
    """Every name that is used as a dimension. Unreadable rows are skipped; validation reports them."""
    names: dict[str, None] = {}
    with path.open("rb") as file:
        for line in jsonl.lines(file):
            try:
                row = to_row(jsonl.parse(line.text), None)
            except ValueError:
                continue
            for named in (row.preferences, *(each for edit in row.edits for each in (edit.labels, edit.critiques))):
                names |= dict.fromkeys(named)
    return list(names)


def _jobs(line: jsonl.Line, value: dict[str, Any], kinds: Mapping[str, Kind], scale: Scale) -> Iterator[Job]:
    row = to_row(value, None)
    for dimension, kind in kinds.items():
        edits = {
            number: judgement
            for number, judgement in enumerate(_judgements(row, dimension, scale))
            if dimension not in row.edits[number].critiques
        }
        if dimension in row.compared and edits:
            yield Job(
                line=line.number,
                row=zlib.crc32(line.text.strip()),
                dimension=dimension,
                kind=kind,
                instruction=row.instruction,
                sources=tuple(row.source),
                images=tuple(edit.image for edit in row.edits),
                edits=edits,
            )


def _judgements(row: Row, dimension: str, scale: Scale) -> Sequence[Judgement]:
    """The labels, which are finer, unless a preference contradicts their order."""
    if dimension not in row.compared:
        return []
    labels = [edit.labels.get(dimension) for edit in row.edits]
    preference = row.preferences.get(dimension)
    known = [label for label in labels if label is not None]
    if len(known) == len(labels) and (preference is None or preference == _order(known)):
        scores = []
        for number, label in enumerate(known):
            try:
                scores.append(Judgement(score=scale.score(label)))
            except ValueError as error:
                raise ValueError(f"edits[{number}].labels.{dimension}: {error}") from None
        return scores
    assert preference is not None
    return [Judgement(verdict=verdict) for verdict in _VERDICTS[preference]]


def _order(labels: Sequence[float]) -> Preference:
    first, second = labels
    return "tie" if first == second else "first" if first > second else "second"
