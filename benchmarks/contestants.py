"""Four ways to score that take turns, over one checkpoint: same weights, same images, same host."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from jrm_client import JRMClient
from jrm_service.bench.direct import score_alone, score_together
from jrm_service.bench.pictures import Group, prepare
from jrm_service.bench.rounds import Turn
from jrm_service.bench.server import TIMEOUT_S, Callers, serving
from jrm_service.model.checkpoint import open_checkpoint
from jrm_service.model.engine import TrieScorer
from jrm_service.model.scorer import PlainScorer
from jrm_service.scoring.preparing import CheckpointPreparer
from jrm_service.scoring.types import Candidate

from .pictures import Pictures

PLAIN, ENGINE = "(a) plain scorer", "(c) engine"
ONE_CALLER, MANY_CALLERS = "(d) service, 1 caller", "(e) service, many callers"
TOLERANCE = 1e-3


@dataclass
class Contestants:
    """All four, ready, for one layout. ``fresh`` gives groups that none of them has seen.

    Decoding and resizing are part of what the service does for (d) and (e), and done beforehand for the others.
    """

    preparer: CheckpointPreparer
    plain: PlainScorer
    engine: TrieScorer
    url: str
    edits: int
    callers: Callers
    pictures: Pictures

    def fresh(self, groups: int, edits: int | None = None) -> list[Group]:
        """The next groups that no contestant has seen, of the usual size or of ``edits``."""
        return [self.pictures.group(edits or self.edits) for _ in range(groups)]

    def prepare(self, groups: Sequence[Group]) -> list[Candidate]:
        """What the service makes of the groups before it queues them."""
        return prepare(self.preparer, groups)

    def check(self, group: Group) -> tuple[list[float], float]:
        """The plain scorer's rewards of a group, and the largest difference from them; see ``largest_difference``."""
        candidates = self.prepare([group])
        expected = score_alone(self.plain, candidates)
        others = {
            ENGINE: score_together(self.engine, candidates),
            ONE_CALLER: _one_caller(self.url, [group]),
            MANY_CALLERS: self.callers.score(group.singles).rewards,
        }
        return expected, max(largest_difference(name, rewards, expected) for name, rewards in others.items())

    def turns(self, groups: int, alone: int) -> dict[str, Turn]:
        """One round over fresh groups. (a), whose speed does not depend on how many there are, scores ``alone``
        candidates of them; (e) has groups of its own, or the server would know the sources from (d).
        """
        shared, own = self.fresh(groups), self.fresh(groups)
        candidates = self.prepare(shared)
        singles = [single for group in own for single in group.singles]
        return {
            PLAIN: partial(score_alone, self.plain, candidates[:alone]),
            ENGINE: partial(score_together, self.engine, candidates),
            ONE_CALLER: partial(_one_caller, self.url, shared),
            MANY_CALLERS: lambda: self.callers.score(singles).rewards,
        }


def largest_difference(name: str, rewards: Sequence[float], expected: Sequence[float]) -> float:
    """How far the rewards are from the plain scorer's. Raises RuntimeError above TOLERANCE."""
    apart = max(abs(ours - theirs) for ours, theirs in zip(rewards, expected, strict=True))
    if not apart <= TOLERANCE:
        raise RuntimeError(f"{name} differs from {PLAIN} by {apart:.2g}: its speed means nothing")
    return apart


def _one_caller(url: str, groups: Sequence[Group]) -> list[float]:
    """Rewards of all groups, in order, from one ``score_batch`` call."""
    with JRMClient(url, timeout=TIMEOUT_S) as client:
        return [score.reward for score in client.score_batch([pair for group in groups for pair in group.pairs])]


@contextmanager
def contestants(checkpoint: Path, *, edits: int, side: int, callers: int) -> Iterator[Contestants]:
    """Load one checkpoint into everything, the service in a process of its own. Images are ``side`` pixels square."""
    opened = open_checkpoint(checkpoint)
    plain = PlainScorer(opened, "cpu", torch.float32)
    with serving(checkpoint, {"device": "cpu"}) as url, Callers(url, callers) as all_callers:
        yield Contestants(
            preparer=CheckpointPreparer(opened),
            plain=plain,
            engine=TrieScorer(opened, "cpu", torch.float32),
            url=url,
            edits=edits,
            callers=all_callers,
            pictures=Pictures(side),
        )
