"""The work of a soak: what was handed to whom, and whether every candidate of it was answered once. Pure."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .known_rewards import KnownGroup
from .ledger import Ledger
from .soak_client import EDITS

_REPEATED = 0.25  # of the jobs, for the caches' sake
_RECENT = 200


@dataclass
class _Job:
    number: int
    group: KnownGroup
    unanswered: set[int]


@dataclass
class Jobs:
    """Hands out jobs, takes lines of ``soak_client``, and gives what a killed client left to the next one.

    Some jobs are groups that were sent before. ``failures`` are calls that failed as a whole.
    """

    random: random.Random
    ledger: Ledger = field(default_factory=Ledger)
    failures: Counter[str] = field(default_factory=Counter)
    issued: int = 0
    _open: dict[int, _Job] = field(default_factory=dict)
    _left: list[_Job] = field(default_factory=list)
    _groups: int = 0

    @property
    def candidates(self) -> int:
        """Candidates of all jobs so far."""
        return EDITS * self.issued

    @property
    def unfinished(self) -> int:
        """Jobs that were handed out, or left behind, and are not answered in full."""
        return len(self._open)

    @property
    def waiting(self) -> bool:
        """Whether a killed client left something."""
        return bool(self._left)

    def next(self, *, fresh: bool) -> dict[str, Any] | None:
        """What a client should do next: first what another one left. Nothing new unless ``fresh``."""
        if self._left:
            job = self._left.pop()
        elif fresh:
            job = self._new()
        else:
            return None
        return {"job": job.number, "group": job.group.number, "edits": sorted(job.unanswered)}

    def line(self, line: Mapping[str, Any]) -> int | None:
        """Take an answer. Returns the job when that was its last one."""
        if "failure" in line:
            self.failures[line["failure"].partition(":")[0]] += 1
            return None
        if "error" in line:
            self.ledger.errors[line["error"]] += 1
            return None
        number, edit = line["job"], line["edit"]
        job = self._open.get(number)
        if job is None:  # it was answered in full before: doubled, and the reward is nobody's
            self.ledger.answered(number, edit, 0.0, 0.0)
            return None
        self.ledger.answered(number, edit, line["reward"], job.group.rewards[edit])
        job.unanswered.discard(edit)
        if job.unanswered:
            return None
        del self._open[number]
        return job.number

    def left_behind(self, number: int) -> None:
        """The client that had this job was killed."""
        self._left.append(self._open[number])

    def _new(self) -> _Job:
        if self._groups and self.random.random() < _REPEATED:
            group = self.random.randrange(max(0, self._groups - _RECENT), self._groups)
        else:
            group, self._groups = self._groups, self._groups + 1
        job = _Job(self.issued, KnownGroup(group, EDITS), set(range(EDITS)))
        self.issued += 1
        self._open[job.number] = job
        return job
