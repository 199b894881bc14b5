"""A gate that threads pass one by one, in the order in which they drew their tickets."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


class OrderedGate:
    """Tickets from 0; a ticket's turn comes when all before it are over or were given back."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._drawn = 0
        self._serving = 0
        self._over: set[int] = set()

    def draw(self) -> int:
        """Return the next ticket; the caller must then use ``turn`` or ``skip``."""
        with self._changed:
            self._drawn += 1
            return self._drawn - 1

    @contextlib.contextmanager
    def turn(self, ticket: int) -> Iterator[None]:
        """Wait for the ticket's turn; it ends with the block, also when the wait is interrupted."""
        try:
            with self._changed:
                self._changed.wait_for(lambda: self._serving == ticket)
            yield
        finally:
            self.skip(ticket)

    def skip(self, ticket: int) -> None:
        """End the turn of a ticket, whether or not it has come."""
        with self._changed:
            self._over.add(ticket)
            while self._serving in self._over:
                self._over.remove(self._serving)
                self._serving += 1
            self._changed.notify_all()
