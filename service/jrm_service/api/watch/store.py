"""The groups that /v1/watch keeps, with their pictures. Pure."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

from .pictures import Picture


@dataclass(frozen=True, slots=True)
class KeptGroup:
    """One group. ``number`` counts groups from 1; ``event`` is what readers get, ASCII on one line."""

    number: int
    event: str
    pictures: tuple[Picture, ...]


class RecentGroups:
    """The newest groups: at most ``max_groups``, of at most ``max_bytes`` in pictures and events. The oldest go first.

    A picture that several groups have is kept, and counted, once.
    """

    def __init__(self, max_groups: int, max_bytes: int) -> None:
        self.max_groups = max_groups
        self.max_bytes = max_bytes
        self.bytes = 0
        self.newest = 0
        """The number of the group that was added last; 0 before the first."""
        self._groups: deque[KeptGroup] = deque()
        self._pictures: dict[str, Picture] = {}
        self._users: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._groups)

    def add(self, event: str, pictures: Sequence[Picture]) -> None:
        """Keep a group, and drop the oldest until all fit, even this one if it does not fit alone."""
        self.newest += 1
        group = KeptGroup(self.newest, event, tuple({picture.id: picture for picture in pictures}.values()))
        self._groups.append(group)
        self.bytes += len(event)
        for picture in group.pictures:
            self._users[picture.id] += 1
            if self._users[picture.id] == 1:
                self._pictures[picture.id] = picture
                self.bytes += len(picture.content)
        while len(self._groups) > self.max_groups or self.bytes > self.max_bytes:
            self._forget(self._groups.popleft())

    def after(self, number: int) -> KeptGroup | None:
        """The oldest group that is kept and has a higher number."""
        if number >= self.newest or not self._groups:
            return None
        return self._groups[max(0, number + 1 - self._groups[0].number)]

    def picture(self, id_: str) -> Picture | None:
        """The picture, while a group that has it is kept."""
        return self._pictures.get(id_)

    def _forget(self, group: KeptGroup) -> None:
        self.bytes -= len(group.event)
        for picture in group.pictures:
            self._users[picture.id] -= 1
            if self._users[picture.id] == 0:
                del self._users[picture.id]
                self.bytes -= len(self._pictures.pop(picture.id).content)
