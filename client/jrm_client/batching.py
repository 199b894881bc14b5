"""Candidates -> HTTP requests. Pure: images are known by a key and a size only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """One edit to be scored: the keys of its encoded images, and the instruction."""

    sources: tuple[str, ...]
    edited: str
    instruction: str


@dataclass(frozen=True, slots=True)
class Group:
    """Candidates that share sources and instruction. ``positions[k]`` is the caller's index of ``edits[k]``."""

    sources: tuple[str, ...]
    instruction: str
    edits: tuple[str, ...]
    positions: tuple[int, ...]

    @property
    def images(self) -> tuple[str, ...]:
        """Keys of the distinct images, in order of appearance."""
        return tuple(dict.fromkeys((*self.sources, *self.edits)))


@dataclass(frozen=True, slots=True)
class Batch:
    """What one HTTP request carries."""

    groups: tuple[Group, ...]

    @property
    def images(self) -> tuple[str, ...]:
        """Keys of the distinct images, in order of appearance: each is uploaded once."""
        return tuple(dict.fromkeys(key for group in self.groups for key in group.images))


@dataclass(frozen=True, slots=True)
class Limits:
    """How large one HTTP request may be.

    ``image_bytes`` stays well under the 64 MiB body that a server takes by default, yet holds a group of twelve
    uncompressed 1024x1024 edits whole (39 MiB). ``text_bytes`` keeps the JSON part under the 1 MB that form parsers
    allow a field. ``candidates``, twenty groups of twelve, is what even a server with a short queue accepts; most
    accept 1,024. ``target_candidates``: from this size on a request takes no further group, though it may hold a
    larger group whole; smaller requests can be spread over several servers.
    """

    image_bytes: int = 48 * 2**20
    text_bytes: int = 512 * 2**10
    candidates: int = 240
    target_candidates: int = 240


_PART_OVERHEAD = 256  # bytes: the headers and the boundary of a part
_IMAGE_OVERHEAD = 32  # bytes: the name of an image in the JSON
_GROUP_OVERHEAD = 128


def plan(candidates: Sequence[Candidate], sizes: Mapping[str, int], limits: Limits) -> list[Batch]:
    """Split candidates over requests. ``sizes`` gives the bytes of every image.

    Every candidate is in exactly one request. Candidates with equal sources and instruction form one group wherever
    they are, and a group is split only if it exceeds the limits by itself. A single candidate that exceeds them goes
    alone: the server decides whether to accept it.
    """
    batches: list[Batch] = []
    groups: list[Group] = []
    load = _Load(sizes)
    for group in (piece for whole in _groups(candidates) for piece in _split(whole, sizes, limits)):
        if groups and not load.takes(group, limits):
            batches.append(Batch(tuple(groups)))
            groups, load = [], _Load(sizes)
        groups.append(group)
        load.add(group)
    if groups:
        batches.append(Batch(tuple(groups)))
    return batches


class _Load:
    """The size so far of the request that is being filled."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self._sizes = sizes
        self._images: set[str] = set()
        self._image_bytes = 0
        self._text_bytes = 0
        self._candidates = 0

    def takes(self, group: Group, limits: Limits) -> bool:
        return (
            self._image_bytes + self._new_bytes(group) <= limits.image_bytes
            and self._text_bytes + _text_bytes(group) <= limits.text_bytes
            and self._candidates + len(group.edits) <= min(limits.candidates, limits.target_candidates)
        )

    def add(self, group: Group) -> None:
        self._image_bytes += self._new_bytes(group)
        self._text_bytes += _text_bytes(group)
        self._candidates += len(group.edits)
        self._images.update(group.images)

    def _new_bytes(self, group: Group) -> int:
        return sum(self._sizes[key] + _PART_OVERHEAD for key in group.images if key not in self._images)


def _text_bytes(group: Group) -> int:
    return _GROUP_OVERHEAD + len(group.instruction.encode()) + _IMAGE_OVERHEAD * (len(group.sources) + len(group.edits))


def _groups(candidates: Sequence[Candidate]) -> Iterator[Group]:
    members: dict[tuple[tuple[str, ...], str], list[int]] = {}
    for position, candidate in enumerate(candidates):
        members.setdefault((candidate.sources, candidate.instruction), []).append(position)
    for (sources, instruction), positions in members.items():
        yield Group(sources, instruction, tuple(candidates[p].edited for p in positions), tuple(positions))


def _split(group: Group, sizes: Mapping[str, int], limits: Limits) -> Iterator[Group]:
    """Split a group that exceeds the limits by itself; otherwise yield it as it is."""
    start = 0
    source_weight = sum(sizes[key] + _PART_OVERHEAD for key in set(group.sources))
    images, weight = set(group.sources), source_weight
    for index, key in enumerate(group.edits):
        more = 0 if key in images else sizes[key] + _PART_OVERHEAD
        if index > start and (weight + more > limits.image_bytes or index - start >= limits.candidates):
            yield _piece(group, start, index)
            start, images, weight = index, set(group.sources), source_weight
            more = 0 if key in images else sizes[key] + _PART_OVERHEAD
        images.add(key)
        weight += more
    yield _piece(group, start, len(group.edits))


def _piece(group: Group, start: int, end: int) -> Group:
    return Group(group.sources, group.instruction, group.edits[start:end], group.positions[start:end])
