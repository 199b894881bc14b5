"""The trie of a batch's segments: whatever sequences have in common from their start is computed once. Pure.

Attention is causal, so the hidden state of a token depends only on its path from the root: sharing a path is exact.
Nodes are packed into one row without padding, parents before children; a node's queries see the keys of its path.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from jrm_service.scoring.planner import BatchCost, unshared_tokens
from jrm_service.scoring.types import Candidate, Image, Segment, Text

from .manifest import PositionRule

Positions = npt.NDArray[np.int64]


@dataclass(slots=True)
class Node:
    """A run of segments that are only ever seen together.

    ``start`` is its place in the packed row, ``tokens`` its length, ``path`` the nodes from the root to itself, and
    ``ending`` the numbers of the sequences that end here: their reward token is the node's last token.
    """

    segments: list[Segment]
    path: list[Node] = field(default_factory=list)
    start: int = 0
    ending: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Tokens of this node alone."""
        return sum(segment.tokens for segment in self.segments)

    @property
    def context(self) -> int:
        """Tokens of the whole path: the keys that its last token sees."""
        return sum(node.tokens for node in self.path)

    @property
    def slots(self) -> npt.NDArray[np.int64]:
        """Packed positions of this node's tokens."""
        return np.arange(self.start, self.start + self.tokens)


@dataclass(frozen=True, slots=True)
class Trie:
    """``nodes`` in packed order; ``reads`` the packed position of each sequence's reward token, in input order."""

    nodes: list[Node]
    reads: list[int]

    @property
    def tokens(self) -> int:
        """Length of the packed row."""
        return sum(node.tokens for node in self.nodes)

    @property
    def segments(self) -> Iterable[Segment]:
        """Every segment in packed order."""
        return (segment for node in self.nodes for segment in node.segments)


class _Branch:
    """A trie under construction, one segment a branch."""

    def __init__(self) -> None:
        self.children: dict[object, tuple[Segment, _Branch]] = {}
        self.ending: list[int] = []

    def grow(self, segment: Segment) -> _Branch:
        key = (segment.key, segment.pixels.shape) if isinstance(segment, Image) else segment.ids
        return self.children.setdefault(key, (segment, _Branch()))[1]


def build_trie(sequences: Sequence[Sequence[Segment]]) -> Trie:
    """Share every common beginning. Each sequence is its segments up to and including the reward token."""
    root = _Branch()
    for number, segments in enumerate(sequences):
        branch = root
        for segment in segments:
            branch = branch.grow(segment)
        branch.ending.append(number)
    nodes: list[Node] = []
    reads = [0] * len(sequences)
    # An explicit stack: a sequence has few segments, but the trie's shape is not ours to bound.
    pending: list[tuple[Segment, _Branch, list[Node]]] = [(s, b, []) for s, b in reversed(root.children.values())]
    row = 0
    while pending:
        segment, branch, above = pending.pop()
        node = Node([segment])
        while len(branch.children) == 1 and not branch.ending:
            ((segment, branch),) = branch.children.values()
            node.segments.append(segment)
        node.path, node.start, node.ending = [*above, node], row, branch.ending
        row += node.tokens
        nodes.append(node)
        for number in branch.ending:
            reads[number] = row - 1
        pending += [(segment, child, node.path) for segment, child in reversed(branch.children.values())]
    return Trie(nodes, reads)


def positions(trie: Trie, factor: int, rule: PositionRule = "mrope") -> Positions:
    """Positions int64 [3, tokens] of the packed row, (time, height, width), counted along each path.

    ``mrope`` is how every family's stock forward counts a still image. Text advances all three by one a token. An image
    of h x w tokens (``factor`` pixels a side each) holds time still, counts rows and columns from where it starts, and
    what follows it goes on at the larger of the two. ``sequential`` counts images as if they were text.
    """
    out = np.empty((3, trie.tokens), np.int64)
    after: dict[int, int] = {}
    for node in trie.nodes:
        position = after[id(node.path[-2])] if len(node.path) > 1 else 0
        slot = node.start
        for segment in node.segments:
            columns = out[:, slot : slot + segment.tokens]
            if rule == "sequential" or isinstance(segment, Text):
                columns[:] = np.arange(position, position + segment.tokens)
                position += segment.tokens
            else:
                height, width = (side // factor for side in segment.pixels.shape[:2])
                columns[0] = position
                columns[1] = position + np.repeat(np.arange(height), width)
                columns[2] = position + np.tile(np.arange(width), height)
                position += max(height, width)
            slot += segment.tokens
        after[id(node)] = position
    return out


@dataclass(frozen=True, slots=True)
class AttentionGroup:
    """Nodes of equal length and equal context, attended to in one call.

    ``queries`` int64 [n, q] and ``keys`` int64 [n, k] are packed positions; the last q keys are the queries' own, and
    query i sees the first k - q + i + 1 of them.
    """

    queries: npt.NDArray[np.int64]
    keys: npt.NDArray[np.int64]


def attention_groups(trie: Trie) -> list[AttentionGroup]:
    """Who sees what, grouped by shape so that few kernel calls cover a batch."""
    by_shape: dict[tuple[int, int], list[Node]] = {}
    for node in trie.nodes:
        by_shape.setdefault((node.tokens, node.context), []).append(node)
    return [
        AttentionGroup(
            queries=np.stack([node.slots for node in nodes]),
            keys=np.stack([np.concatenate([above.slots for above in node.path]) for node in nodes]),
        )
        for nodes in by_shape.values()
    ]


def _parts(candidate: Candidate) -> dict[object, int]:
    """Tokens of everything that a candidate may share with others, by a key: each path, and each image once more."""
    parts: dict[object, int] = {image.key: image.tokens for image in candidate.images}
    for sequence in candidate.sequences:
        path: tuple[object, ...] = ()
        for segment in sequence.segments:
            path = (path, segment.key if isinstance(segment, Image) else segment.ids)
            parts[path] = segment.tokens
    return parts


def shared_tokens(candidates: Sequence[Candidate]) -> int:
    """What a batch costs: packed language-model tokens, plus the tokens of each distinct image once more.

    The second term stands for the vision tower, which sees four patches for each of those tokens.
    """
    parts: dict[object, int] = {}
    for candidate in candidates:
        parts |= _parts(candidate)
    return sum(parts.values())


ROW_OVER_SHARED = 16  # a row this many times what the next one computes again: at most 1/16 of all work is done again


def split_rows(candidates: Sequence[Candidate], budget: int) -> list[list[int]]:
    """Indices of the candidates of each row: those of the same sources stand together, a row costs about ``budget``.

    A row that is full is closed by the candidate that fills it, so none is empty, and one candidate is never split.
    What the next candidate shares with a row, another row computes again, but for images, whose features are kept: so a
    row grows beyond the budget, up to ROW_OVER_SHARED times that, where a cut would cost more than a short row is worth
    (a long prompt that comes first).
    """
    rank: dict[tuple[bytes, ...], int] = {}
    for candidate in candidates:
        rank.setdefault(candidate.source_keys, len(rank))
    rows: list[list[int]] = []
    held: set[object] = set()
    cost = 0
    for index in sorted(range(len(candidates)), key=lambda n: rank[candidates[n].source_keys]):
        parts = _parts(candidates[index])
        # A path is a tuple, an image's key is bytes.
        shared = sum(tokens for key, tokens in parts.items() if key in held and isinstance(key, tuple))
        if not rows or cost >= max(budget, ROW_OVER_SHARED * shared):
            rows.append([])
            held, cost = set(), 0
        rows[-1].append(index)
        cost += sum(tokens for key, tokens in parts.items() if key not in held)
        held |= parts.keys()
    return rows


BATCH_COSTS: dict[str, BatchCost] = {"trie": shared_tokens, "plain": unshared_tokens}
"""What a batch costs against the token budget, by engine."""
