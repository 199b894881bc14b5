"""Which replica gets the next request. Pure: time is passed in, ``transport`` executes.

The replica with the least outstanding requests gets it. A replica that fails is ejected, for longer each time, and then
tried with one request; once that is answered, or has run long enough for the connection to be up, it is a replica like
any other. When all are ejected, one is chosen as if none were: with a single replica, this module changes nothing. A
request is never sent to two replicas at once.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

from .retry import CONNECT_TIMEOUT, FIRST_EJECTION, MAX_EJECTION, SILENCE, Backoff

T = TypeVar("T")

EJECTION = Backoff(FIRST_EJECTION, MAX_EJECTION)


def first_turn(environment: Mapping[str, str]) -> Fraction:
    """Return where in its list of replicas a client begins: 0 is at the front, 1/2 in the middle.

    Ranks send requests at the same time and equally often, and each takes the replicas in turn. Ranks that know their
    number (RANK of WORLD_SIZE, from torchrun and other launchers) begin evenly spaced, so every replica gets an equal
    share. Other clients begin at random: chance then gives some replicas twice the mean, and a step waits for them.
    """
    try:
        rank, world = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    except (KeyError, ValueError):
        rank = world = 0
    return Fraction(rank, world) if 0 <= rank < world else Fraction(random.random())  # noqa: S311 - no secret


def rotated(names: Sequence[T], turn: Fraction) -> list[T]:
    """Return the names from the one at ``turn`` (``first_turn``) on, then those before it."""
    first = int(turn * len(names))
    return [*names[first:], *names[:first]]


@dataclass(slots=True, eq=False)
class _Replica:
    name: str
    outstanding: int = 0
    failures: int = 0  # in a row; of attempts that were sent together, one counts
    ejected_until: float = -math.inf
    trial_until: float = -math.inf
    era: int = 0  # goes up with every ejection
    used: int = 0
    silent: bool = False  # it let a call run out of time, and has answered nothing since

    @property
    def out_until(self) -> float:
        return max(self.ejected_until, self.trial_until)


@dataclass(frozen=True, slots=True)
class Attempt:
    """A request that is under way at a replica. ``era`` is that of the replica when the request was sent.

    ``doubtful``: the replica was silent last time, so it has to give a sign of life first.
    """

    replica: _Replica
    era: int
    began: float
    doubtful: bool


class Replicas:
    """The state of a fleet, shared by all requests of a client on one event loop.

    ``names`` are in order of preference among equals that were never asked. Times are seconds on any one clock.
    Raises ValueError for no names.
    """

    def __init__(self, names: Iterable[str], ejection: Backoff = EJECTION) -> None:
        self._ejection = ejection
        self._replicas: dict[str, _Replica] = {}
        self._sent = 0
        self.replace(names)

    def __len__(self) -> int:
        return len(self._replicas)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the replicas."""
        return tuple(self._replicas)

    def replace(self, names: Iterable[str]) -> None:
        """Set the list of replicas; those that stay keep their state. Raises ValueError for an empty list."""
        replicas = {name: self._replicas.get(name) or _Replica(name) for name in names}
        if not replicas:
            raise ValueError("a fleet has at least one replica")
        self._replicas = replicas

    def choose(
        self, now: float, ready: Mapping[str, float], only: Set[str] = frozenset(), elsewhere: float = -math.inf
    ) -> tuple[str, float]:
        """Return the replica for a request, and the seconds to wait before sending it there.

        ``ready``: when this request may go again to a replica that failed it, ``elsewhere``: to any other. ``only``:
        the replicas it may go to, as long as one of them exists; any if it is empty. After a wait, choose again.
        """
        all_out = all(replica.out_until > now for replica in self._replicas.values())

        def order(replica: _Replica) -> tuple[float, bool, int, int]:
            at = max(now, ready.get(replica.name, elsewhere))
            if all_out:
                # One on trial has shown no fault yet.
                return at, replica.ejected_until > now, replica.outstanding, replica.used
            return max(at, replica.out_until), False, replica.outstanding, replica.used

        allowed = [replica for replica in self._replicas.values() if replica.name in only]
        best = min(allowed or self._replicas.values(), key=order)
        return best.name, order(best)[0] - now

    def start(self, name: str, now: float) -> Attempt:
        """Record that a request goes to ``name``; every attempt must be ended."""
        replica = self._replicas[name]
        self._sent += 1
        replica.used = self._sent
        replica.outstanding += 1
        if replica.failures and now >= replica.ejected_until:
            replica.trial_until = now + CONNECT_TIMEOUT
        return Attempt(replica, replica.era, now, replica.silent)

    def answered(self, attempt: Attempt) -> None:
        """End an attempt with a reply, of whatever kind: the replica works."""
        replica = attempt.replica
        replica.outstanding -= 1
        # A draining replica still answers what it accepted earlier: that says nothing about the next request.
        if attempt.era == replica.era:
            replica.failures = 0
            replica.silent = False
            replica.ejected_until = replica.trial_until = -math.inf

    def failed(self, attempt: Attempt, now: float, retry_after: float | None = None) -> None:
        """End an attempt with a failure that counts against the replica (``retry.ejects``), which is ejected.

        The ejection lasts at least ``retry_after``, but never much over MAX_EJECTION: the address may soon be that of
        another process.
        """
        replica = attempt.replica
        replica.outstanding -= 1
        if attempt.era == replica.era:
            replica.failures += 1
            replica.era += 1
            asked = None if retry_after is None else min(retry_after, MAX_EJECTION)
            replica.ejected_until = now + self._ejection.delay(replica.failures, asked)
            replica.trial_until = -math.inf

    def silent(self, attempt: Attempt, now: float) -> None:
        """End an attempt that ran out of time without a reply: the replica's failure, if it had SILENCE seconds."""
        if now - attempt.began < SILENCE:
            self.abandoned(attempt)
        else:
            attempt.replica.silent = True
            self.failed(attempt, now)

    def abandoned(self, attempt: Attempt) -> None:
        """End an attempt that was given up without an outcome: the call was cancelled."""
        replica = attempt.replica
        replica.outstanding -= 1
        if attempt.era == replica.era:
            replica.trial_until = -math.inf
