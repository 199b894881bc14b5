"""Twins: candidates with the same pixels and the same instruction, of one request or of many. Pure.

Every twin waits in its own place in line; the first of them whose turn comes goes to a device, for all of them. So
nobody waits longer than without the others, and a twin that is given up takes nothing from those who still wait.
"""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

from .types import Candidate


class Waiting(Protocol):
    """What is read of an entry. Entries are told apart by hash, so let that be identity."""

    @property
    def candidate(self) -> Candidate:
        """What is to be scored."""
        ...


EntryT = TypeVar("EntryT", bound=Waiting)

_Identity = tuple[bytes, bytes, str]


class Twins(Generic[EntryT]):
    """Which entries wait, and which one is in a worker's hands, for each distinct candidate."""

    def __init__(self) -> None:
        self._waiting: dict[_Identity, dict[EntryT, None]] = {}
        self._leads: dict[_Identity, EntryT] = {}

    def lead(self, entry: EntryT) -> EntryT | None:
        """The twin of this entry that a worker has in its hands, if there is one."""
        return self._leads.get(_identity(entry))

    def wait(self, entry: EntryT) -> None:
        """The entry waits for its turn."""
        self._waiting.setdefault(_identity(entry), {})[entry] = None

    def forget(self, entry: EntryT) -> None:
        """The entry waits no longer. Unknown entries are ignored."""
        identity = _identity(entry)
        waiting = self._waiting.get(identity, {})
        waiting.pop(entry, None)
        if not waiting:
            self._waiting.pop(identity, None)

    def take(self, entry: EntryT) -> list[EntryT] | None:
        """The turn of a waiting entry has come: it leads, and its twins, which are returned, wait for its score.

        None when it was a twin of one that was taken just before, and leads nothing.
        """
        identity = _identity(entry)
        if entry not in self._waiting.get(identity, {}):
            return None
        twins = self._waiting.pop(identity)
        del twins[entry]
        self._leads[identity] = entry
        return list(twins)

    def release(self, entry: EntryT) -> None:
        """No worker has this lead in its hands any more, and none will have it again. Unknown entries are ignored."""
        if self._leads.get(_identity(entry)) is entry:
            del self._leads[_identity(entry)]


def _identity(entry: Waiting) -> _Identity:
    candidate = entry.candidate
    return candidate.source.key, candidate.edited.key, candidate.instruction
