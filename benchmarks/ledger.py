"""What became of every candidate: answered once, with the right reward, or not."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from .known_rewards import KnownGroup


@dataclass
class Ledger:
    """Counts answers by (group, edit). ``errors`` are typed errors in the place of a score, by code."""

    answers: Counter[tuple[int, int]] = field(default_factory=Counter)
    wrong: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    def answered(self, group: int, edit: int, reward: float, expected: float) -> None:
        """A candidate got a reward, which should be ``expected`` to the last bit."""
        self.answers[group, edit] += 1
        self.wrong += reward != expected

    def group_answered(self, group: KnownGroup, rewards: list[float]) -> None:
        """Every edit of a group got a reward, in order."""
        for edit, (reward, expected) in enumerate(zip(rewards, group.rewards, strict=True)):
            self.answered(group.number, edit, reward, expected)

    def lost(self, candidates: int) -> int:
        """How many of so many candidates have no answer."""
        return candidates - len(self.answers)

    @property
    def doubled(self) -> int:
        """Candidates that were answered more than once."""
        return sum(count > 1 for count in self.answers.values())
