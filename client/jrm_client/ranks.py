"""One outcome for all ranks: a call that fails on one rank of ``torch.distributed`` fails on every rank alike.

Trainers gather rewards over all ranks. If one rank raises and the others go on, these wait in the gather for ever.
So each rank tells the others how its call went: one small all-reduce, and the details only when something is wrong.

The ranks talk over a gloo group of their own. Reward functions run in threads beside the trainer's collectives, which
must never be interleaved with ours, and a thread other than the main one has no device of its own to give NCCL.

torch is never imported here: a process that has not imported it has no ranks.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import FingerprintMismatch, JRMError
from .ordered_gate import OrderedGate

_NOTHING = -(2**62)  # of a rank that has no fingerprint to compare; every hash is above


@dataclass(frozen=True, slots=True)
class Outcome:
    """A successful call of one rank.

    ``rewards`` by key, a list of one float for each image. ``complete`` is False while a rank that had no image yet
    does not know its keys. ``pinned``: the fingerprint that the rank's client is pinned to.
    """

    rewards: dict[str, list[float]]
    complete: bool
    pinned: str | None


@dataclass(frozen=True, slots=True)
class _Report:
    error: bytes | None
    keys: tuple[str, ...] | None
    pinned: str | None


class Ranks:
    """The ranks that share the outcome of every call.

    ``distributed``: None takes part when ``torch.distributed`` is initialised, True insists on it, False never does.

    A process group limits it to the members of that group; it is used as it is if its backend is gloo, and must then be
    used for nothing else at the same time. Otherwise a gloo group is made: at once if ``torch.distributed`` is
    initialised already, else by the first call. Making it is a collective operation, and so is each call: every rank
    does it, in the same order, with images or without.
    """

    def __init__(self, distributed: Any = None) -> None:
        self.__setstate__({"distributed": distributed})
        if self._takes_part(insist=False):
            self._ensure_group()

    def __getstate__(self) -> dict[str, Any]:
        return {"distributed": self._distributed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._distributed = state["distributed"]
        self._gate = OrderedGate()
        self._world: Any = None
        self._group: Any = None

    def agree(self, call: Callable[[], Outcome]) -> Outcome:
        """Return the outcome of ``call`` if it succeeds on all ranks; a rank without images learns the keys of others.

        Otherwise the error of the lowest rank that failed is raised on all of them, of the same type, with a message
        that begins with that rank. Raises FingerprintMismatch if two ranks are pinned to different fingerprints,
        JRMError if another rank cannot be reached, and RuntimeError for ``distributed=True`` without
        ``torch.distributed``. Calls of several threads are matched in the order in which they were made.
        """
        if not self._takes_part():
            return call()
        ticket = self._gate.draw()
        outcome: Outcome | None = None
        failure: Exception | None = None
        try:
            outcome = call()
        except Exception as error:
            failure = error
        except BaseException:  # the process is ending: it no longer waits for the other ranks
            self._gate.skip(ticket)
            raise
        with self._gate.turn(ticket):
            try:
                reports = self._exchange(outcome, failure)
            except RuntimeError as broken:
                if failure is not None:
                    raise failure from None
                raise JRMError(
                    f"the other ranks cannot be asked how their calls went ({broken}); did one of them end?"
                ) from broken
        if shared := _shared_failure(reports) or _mismatch(reports):
            raise shared from failure
        assert outcome is not None
        return outcome if outcome.complete else _with_keys(outcome, reports)

    def close(self) -> None:
        """Destroy the process group that was made here."""
        dist = _initialised()
        if dist is not None and self._group is not self._distributed and self._world is dist.group.WORLD:
            dist.destroy_process_group(self._group)
        self._world = self._group = None

    def _takes_part(self, *, insist: bool = True) -> bool:
        if self._distributed is False:
            return False
        dist = _initialised()
        if dist is None:
            if self._distributed is None or not insist:
                return False
            raise RuntimeError(
                "distributed: torch.distributed is not initialised in this process; call init_process_group first, or "
                "pass distributed=None to take part only when it is"
            )
        if self._distributed is None:
            return bool(dist.get_world_size() > 1)
        return self._distributed is True or dist.get_rank(self._distributed) >= 0

    def _ensure_group(self) -> None:
        dist = _initialised()
        if self._world is not dist.group.WORLD:
            self._group, self._world = self._make_group(dist), dist.group.WORLD

    def _make_group(self, dist: Any) -> Any:
        if self._distributed is None or self._distributed is True:
            return dist.new_group(backend="gloo")
        if "cpu:gloo" in dist.get_backend_config(self._distributed):
            return self._distributed
        members = dist.get_process_group_ranks(self._distributed)
        return dist.new_group(members, backend="gloo", use_local_synchronization=True)

    def _exchange(self, outcome: Outcome | None, failure: Exception | None) -> dict[int, _Report]:
        """The reports of all ranks if something is wrong on one of them or unknown to it, else none."""
        self._ensure_group()
        dist, torch = _initialised(), sys.modules["torch"]
        report = _report(outcome, failure)
        pinned = _hash(report.pinned)
        state = [report.error is not None, report.error is None and report.keys is None, pinned, _negative(pinned)]
        worst = torch.tensor([int(value) for value in state], dtype=torch.int64, device="cpu")
        dist.all_reduce(worst, op=dist.ReduceOp.MAX, group=self._group)
        failed, incomplete, high, low = worst.tolist()
        if not (failed or incomplete) and low == _negative(high):
            return {}
        reports: list[Any] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(reports, report, group=self._group)
        return dict(zip(dist.get_process_group_ranks(self._group), reports, strict=True))


def _report(outcome: Outcome | None, failure: Exception | None) -> _Report:
    if outcome is None:
        return _Report(_pack(failure), None, None)
    return _Report(None, tuple(outcome.rewards) if outcome.complete else None, outcome.pinned)


def _shared_failure(reports: Mapping[int, _Report]) -> Exception | None:
    failed = {rank: report.error for rank, report in reports.items() if report.error is not None}
    if not failed:
        return None
    first, *others = failed
    also = f" (and {', '.join(str(rank) for rank in others)})" if others else ""
    return _prefixed(pickle.loads(failed[first]), f"rank {first}{also}: ")  # noqa: S301 - from our own ranks


def _mismatch(reports: Mapping[int, _Report]) -> FingerprintMismatch | None:
    pinned = {rank: report.pinned for rank, report in reports.items() if report.pinned is not None}
    first = next(iter(pinned), None)
    for rank, fingerprint in pinned.items():
        if first is not None and fingerprint != pinned[first]:
            return FingerprintMismatch(
                f"rank {rank} has its scores from the checkpoint {fingerprint}, rank {first} from {pinned[first]}: the "
                "rewards of the two are not comparable. Give all replicas one checkpoint, and start the run again",
                replica=f"rank {rank}",
                pinned=pinned[first],
                served=fingerprint,
            )
    return None


def _with_keys(outcome: Outcome, reports: Mapping[int, _Report]) -> Outcome:
    keys = next((report.keys for report in reports.values() if report.keys is not None), None)
    return outcome if keys is None else Outcome({key: [] for key in keys}, True, outcome.pinned)


def _hash(fingerprint: str | None) -> int:
    if fingerprint is None:
        return _NOTHING
    return int.from_bytes(hashlib.blake2b(fingerprint.encode(), digest_size=7).digest(), "big")


def _negative(value: int) -> int:
    return _NOTHING if value == _NOTHING else -value


def _pack(failure: Exception | None) -> bytes:
    """Pickle a failure for the other ranks; one that cannot be pickled becomes a JRMError with its text."""
    try:
        packed = pickle.dumps(failure)
        if type(pickle.loads(packed)) is type(failure):  # noqa: S301 - made a line ago
            return packed
    except Exception:  # noqa: S110 - a class may raise anything when it is pickled; the line below handles it
        pass
    return pickle.dumps(JRMError(f"{type(failure).__name__}: {failure}"))


def _prefixed(error: Exception, prefix: str) -> Exception:
    """Put ``prefix`` before the message of an error, wherever its type keeps the message."""
    if isinstance(error, JRMError):
        error.message = prefix + error.message
        error.args = (error.message, *error.args[1:])
    elif isinstance(error, OSError) and error.strerror:
        error.strerror = prefix + error.strerror
    elif error.args and isinstance(error.args[0], str):
        error.args = (prefix + error.args[0], *error.args[1:])
    if prefix not in str(error):
        error.add_note(f"{prefix}this error is of that rank")
    return error


# --- torch, if there is one -------------------------------------------------------------------------------------------

_inherited: Any = None


def _initialised() -> Any:
    """``torch.distributed``, if this process belongs to a world; else None."""
    dist: Any = sys.modules.get("torch.distributed")
    if dist is None or not dist.is_available() or not dist.is_initialized() or dist.group.WORLD is _inherited:
        return None
    return dist


def _after_fork_in_child() -> None:
    # A forked child is not a rank: it has the world's objects, but not the threads and connections behind them.
    global _inherited
    dist: Any = sys.modules.get("torch.distributed")
    if dist is not None and dist.is_available() and dist.is_initialized():
        _inherited = dist.group.WORLD


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
