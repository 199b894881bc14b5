"""The five ways to score that are compared, over one checkpoint: same weights, same images, same host."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from jrm_service.model.checkpoint import load_model, open_checkpoint
from jrm_service.model.engine import TrieScorer
from jrm_service.model.scorer import PlainScorer
from jrm_service.scoring.preparing import CheckpointPreparer
from jrm_service.scoring.types import Candidate

from . import service
from .direct import score_alone, score_together
from .padded import PaddedScorer
from .pictures import Group, Pictures
from .rounds import Rates, Turn

PLAIN, PADDED, ENGINE = "(a) plain scorer", "(b) padded batches", "(c) engine"
ONE_CALLER, MANY_CALLERS = "(d) service, 1 caller", "(e) service, many callers"
TOLERANCE = 1e-3
BATCH_SIZES = (2, 4, 8)  # sequences of a padded batch that are tried


@dataclass
class Contestants:
    """All five, ready, for one layout. ``fresh`` gives groups that none of them has seen.

    Decoding and resizing are part of what the service does for (d) and (e), and done beforehand for the others.
    """

    preparer: CheckpointPreparer
    plain: PlainScorer
    padded: PaddedScorer
    engine: TrieScorer
    url: str
    edits: int
    callers: service.Callers
    pictures: Pictures

    def fresh(self, groups: int, edits: int | None = None) -> list[Group]:
        """The next groups that no contestant has seen, of the usual size or of ``edits``."""
        return [self.pictures.group(edits or self.edits) for _ in range(groups)]

    def prepare(self, groups: Sequence[Group]) -> list[Candidate]:
        """What the service makes of the groups before it queues them."""
        prepared = []
        for one in groups:
            source = self.preparer.image(one.source)
            prepared += [
                self.preparer.candidate([source], self.preparer.image(edit), one.instruction) for edit in one.edits
            ]
        return prepared

    def check(self) -> float:
        """Largest difference from the plain scorer's rewards over one group. Raises RuntimeError above TOLERANCE."""
        groups = self.fresh(1)
        candidates = self.prepare(groups)
        expected = score_alone(self.plain, candidates)
        found = {
            PADDED: score_together(self.padded, candidates),
            ENGINE: score_together(self.engine, candidates),
            ONE_CALLER: service.one_caller(self.url, groups),
            MANY_CALLERS: self.callers.score(groups).rewards,
        }
        worst = 0.0
        for name, rewards in found.items():
            apart = max(abs(ours - theirs) for ours, theirs in zip(rewards, expected, strict=True))
            if apart > TOLERANCE:
                raise RuntimeError(f"{name} differs from {PLAIN} by {apart:.2g}: its speed means nothing")
            worst = max(worst, apart)
        return worst

    def choose_batch_size(self) -> Rates:
        """Try every size of a padded batch, and keep the fastest."""
        rates = Rates()
        for _ in range(2):
            candidates = self.prepare(self.fresh(1))[:4]
            rates.run({str(size): self._padded_turn(size, candidates) for size in BATCH_SIZES})
        self.padded.batch_size = max(BATCH_SIZES, key=lambda size: rates.rate(str(size)))
        return rates

    def _padded_turn(self, size: int, candidates: list[Candidate]) -> Turn:
        def turn() -> list[float]:
            self.padded.batch_size = size
            return score_together(self.padded, candidates)

        return turn

    def turns(self, groups: int, alone: int) -> dict[str, Turn]:
        """One round over fresh groups. (a) and (b), whose speed does not depend on how many there are, score ``alone``
        candidates of them; (e) has groups of its own, or the server would know the sources from (d).
        """
        shared, own = self.fresh(groups), self.fresh(groups)
        candidates = self.prepare(shared)
        return {
            PLAIN: partial(score_alone, self.plain, candidates[:alone]),
            PADDED: partial(score_together, self.padded, candidates[:alone]),
            ENGINE: partial(score_together, self.engine, candidates),
            ONE_CALLER: partial(service.one_caller, self.url, shared),
            MANY_CALLERS: lambda: self.callers.score(own).rewards,
        }


@contextmanager
def contestants(checkpoint: Path, *, edits: int, side: int, callers: int) -> Iterator[Contestants]:
    """Load one checkpoint into everything, the service in a process of its own. Images are ``side`` pixels square."""
    opened = open_checkpoint(checkpoint)
    plain = PlainScorer(opened, "cpu", torch.float32)
    padded = PaddedScorer(plain.collate, *load_model(opened, "cpu", torch.float32), "cpu", BATCH_SIZES[0])
    with service.server(checkpoint) as url, service.Callers(url, callers) as all_callers:
        yield Contestants(
            preparer=CheckpointPreparer(opened),
            plain=plain,
            padded=padded,
            engine=TrieScorer(opened, "cpu", torch.float32),
            url=url,
            edits=edits,
            callers=all_callers,
            pictures=Pictures(side),
        )
