"""A benchmark as pairs of edits with a human verdict, and as the groups of two that an evaluation scores."""

from __future__ import annotations

import hashlib
import operator
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, SupportsIndex, overload

import numpy as np
from PIL import Image

from jrm_service.errors import CandidateError
from jrm_service.images.decode import decode
from jrm_training.bootstrap import Array, Tally
from jrm_training.data import Edit, Group
from jrm_training.evaluate_results import EvaluationError

from .formulas import Labels
from .rows import Rows, open_rows

MAX_LISTED = 20

Label = Literal[1, 0, -1]  # people prefer the first edit, neither, the second


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a row says: the files of its images, the instruction, the human verdict, and where it counts.

    ``parts`` are the parts of the benchmark that have figures, ``"all"`` or ``"all/a category"``. ``identity`` is what
    should stand in the benchmark once, where that is not the images and the instruction. ``group`` names what is right
    or wrong as a whole, of ``group_size`` pairs.
    """

    sources: Sequence[bytes]
    edits: tuple[bytes, bytes]
    instruction: str
    label: Label
    parts: tuple[str, ...]
    identity: tuple[str, ...] = ()
    group: str = ""
    group_size: int = 1


@dataclass(frozen=True, slots=True)
class Pair:
    """What is kept of a row: no images. ``cluster`` is equal where source and instruction are, ``checksum`` of all."""

    row: str
    label: Label
    parts: tuple[str, ...]
    identity: tuple[str, ...]
    group: str
    group_size: int
    cluster: str
    checksum: str


class Published(Protocol):
    """Figures by the formulas of a benchmark's own code, by part and name."""

    def __call__(
        self, pairs: Sequence[Pair], labels: Labels, differences: Array, clusters: Clusters, *, cut: bool
    ) -> Mapping[str, Mapping[str, Tally]]:
        """``differences`` are score of the first edit minus score of the second, NaN without one of them.

        ``cut``: the pairs are not all of the benchmark, so that a group may lack some.
        """
        ...


@dataclass(frozen=True, slots=True)
class Clusters:
    """Pairs that share a source and an instruction: resampled together, and never divided between the halves."""

    of_pair: Labels
    count: int

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> Clusters:
        """Number the clusters of pairs in the order of their first pair."""
        numbers: dict[str, int] = {}
        of_pair = [numbers.setdefault(pair.cluster, len(numbers)) for pair in pairs]
        return cls(np.array(of_pair, np.int64), len(numbers))


@dataclass(frozen=True, slots=True)
class Benchmark:
    """How one benchmark is read and counted.

    ``files`` are patterns, tried in order, of what to look for in a folder; ``json_key`` is where a JSON document has
    its rows. ``resize``: edits take the size of the source before they are scored, as in the benchmark's own code.
    ``caution`` says in one line what its numbers must not be compared with.
    """

    name: str
    title: str
    files: tuple[str, ...]
    parse: Callable[[Mapping[str, Any], Path], Parsed]
    published: Published
    caution: str
    json_key: str = "rows"
    resize: bool = False


class PairSet(Sequence[Group]):
    """The pairs of a benchmark as groups of two edits without labels. Images are read when a group is asked for.

    ``problems`` are the rows that were left out, by name and reason.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        rows: Rows,
        places: Sequence[int],
        pairs: Sequence[Pair],
        problems: Sequence[str],
    ) -> None:
        self.benchmark = benchmark
        self.pairs = pairs
        self.problems = problems
        self.paths = rows.paths
        self.total = len(rows)
        self._rows = rows
        self._places = places

    def __len__(self) -> int:
        return len(self.pairs)

    @overload
    def __getitem__(self, index: SupportsIndex) -> Group: ...
    @overload
    def __getitem__(self, index: slice) -> PairSet: ...
    def __getitem__(self, index: SupportsIndex | slice) -> Group | PairSet:
        if isinstance(index, slice):
            return PairSet(self.benchmark, self._rows, self._places[index], self.pairs[index], self.problems)
        number = operator.index(index)
        place = self._places[number]
        try:
            parsed = self.benchmark.parse(self._rows.row(place), self._rows.folder(place))
            if _checksum(parsed) != self.pairs[number].checksum:
                raise ValueError("changed since it was opened")
            return _group(parsed, resize=self.benchmark.resize)
        except ValueError as error:
            raise EvaluationError(f"{self._rows.name(place)}: {error}") from None

    @property
    def cut(self) -> bool:
        """Whether rows were left out, by a limit or as bad ones."""
        return len(self.pairs) < self.total

    @property
    def checksum(self) -> str:
        """32 hex digits over images, instructions and verdicts, in the order of the rows."""
        digest = hashlib.blake2b(digest_size=16)
        for pair in self.pairs:
            digest.update(f"{pair.checksum} {pair.label} {pair.parts}\n".encode())
        return digest.hexdigest()

    def notes(self) -> list[str]:
        """What a reader of the figures should know of the rows: repetitions, contradictions, rows left out."""
        notes = []
        if self.cut:
            notes.append(f"{len(self.pairs):,} of {self.total:,} rows: not comparable with figures of all of them")
        rows = defaultdict(list)
        for pair in self.pairs:
            rows[pair.identity].append(pair)
        repeated = [same for same in rows.values() if len(same) > 1]
        if repeated:
            contradictory = sum(len({pair.label for pair in same}) > 1 for same in repeated)
            notes.append(
                f"{sum(map(len, repeated)) - len(repeated):,} rows repeat another ({contradictory:,} comparisons have "
                f"verdicts that contradict each other), the first of them {repeated[0][1].row}: perhaps an early "
                "revision of the data set"
            )
        sizes = Counter((pair.group, pair.group_size) for pair in self.pairs)
        wrong_size = sum(count != size for (_, size), count in sizes.items())
        if wrong_size:
            counted = "left out of group figures" if self.cut else "counted as wrong, as in the benchmark's own code"
            notes.append(f"{wrong_size:,} groups have more or fewer pairs than they should: {counted}")
        return notes


def open_benchmark(
    benchmark: Benchmark,
    path: Path,
    *,
    limit: int | None = None,
    skip_bad: bool = False,
    advance: Callable[[int, int], None] = lambda _done, _total: None,
) -> PairSet:
    """Read every row once, images decoded, and open the benchmark as a sequence of pairs.

    ``path`` is a file, or a folder in which the benchmark's files are looked for. ``limit``: only the first rows.
    Raises EvaluationError if there is nothing to read or a row is bad, with the first of them by name and reason;
    with ``skip_bad`` they are left out instead, and ``problems`` has all.
    """
    rows = open_rows(_files(benchmark, path), benchmark.json_key)
    row_count = len(rows) if limit is None else min(limit, len(rows))
    places, pairs, problems = [], [], []
    for place in range(row_count):
        advance(place, row_count)
        try:
            parsed = benchmark.parse(rows.row(place), rows.folder(place))
            _group(parsed, resize=False)
        except ValueError as error:
            problems.append(f"{rows.name(place)}: {error}")
            continue
        places.append(place)
        pairs.append(_pair(parsed, rows.name(place)))
    advance(row_count, row_count)
    if problems and not skip_bad:
        more = [f"  and {len(problems) - MAX_LISTED} more"] if len(problems) > MAX_LISTED else []
        listed = [f"  {problem}" for problem in problems[:MAX_LISTED]]
        raise EvaluationError(
            "\n".join(
                [f"{path}: {len(problems)} bad rows of {row_count:,}; --skip-bad leaves them out", *listed, *more]
            )
        )
    if not pairs:
        raise EvaluationError(f"{path}: no rows to evaluate")
    return PairSet(benchmark, rows, places, pairs, problems)


def _files(benchmark: Benchmark, path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise EvaluationError(f"{path}: no such file or folder")
    for pattern in benchmark.files:
        found = sorted(file for file in path.glob(pattern) if file.is_file())
        if found:
            return found
    raise EvaluationError(
        f"{path}: none of {', '.join(benchmark.files)} is in there; download {benchmark.title} first "
        "(docs/benchmarks.md says how), or name the file itself"
    )


def _group(parsed: Parsed, *, resize: bool) -> Group:
    sources = tuple(_decoded(data, f"source {number}") for number, data in enumerate(parsed.sources))
    edits = [_decoded(data, f"edit {number}") for number, data in enumerate(parsed.edits)]
    if resize and sources:
        edits = [edit.resize(sources[0].size) for edit in edits]
    source = sources[0] if len(sources) == 1 else sources or None
    return Group(source, parsed.instruction, tuple(Edit(edit) for edit in edits))


def _decoded(data: bytes, where: str) -> Image.Image:
    try:
        return decode(data)
    except CandidateError as error:
        raise ValueError(f"{where}: {error}") from None


def _pair(parsed: Parsed, name: str) -> Pair:
    checksum = _checksum(parsed)
    return Pair(
        row=name,
        label=parsed.label,
        parts=parsed.parts,
        identity=parsed.identity or (checksum,),
        group=parsed.group or name,
        group_size=parsed.group_size,
        cluster=_hash(*parsed.sources, parsed.instruction.encode()),
        checksum=checksum,
    )


def _checksum(parsed: Parsed) -> str:
    return _hash(*parsed.sources, *parsed.edits, parsed.instruction.encode())


def _hash(*pieces: bytes) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for piece in pieces:
        digest.update(len(piece).to_bytes(8, "big"))
        digest.update(piece)
    return digest.hexdigest()
