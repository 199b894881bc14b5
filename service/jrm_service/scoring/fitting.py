"""How many tokens a batch may have: what is left of a device's memory over what a token was seen to take of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from .backend import Backend, OutOfMemory
from .planner import BatchCost
from .types import Candidate

logger = logging.getLogger(__name__)

DEFAULT_TOKENS = 16_384
"""The budget where memory sets no limit that could be measured: on a CPU, where long rows are slower anyway."""

# Matrix products of so many rows keep any GPU busy: beyond it callers would only wait longer for their batch.
MOST_TOKENS = 65_536
# For what differs from the batch that was measured: longer contexts over the same tokens, and pieces that do not fit.
_MARGIN = 0.25


class DeviceMemory(Protocol):
    """What is asked of a device. Bytes everywhere."""

    def free(self) -> int:
        """What this process may still take, all that it keeps in reserve included."""
        ...

    def peak(self, run: Callable[[], object]) -> int:
        """What ``run`` takes at its height, beyond what is taken now. Raises what ``run`` raises."""
        ...


def token_budget(*, free: int, peak: int, tokens: int, workers: int = 1) -> int:
    """Tokens of a batch that fits, at least 1 and at most MOST_TOKENS.

    Args:
        free: bytes that batches may take.
        peak: bytes that a batch of ``tokens`` took. What it would have taken anyway counts as taken by its tokens, so
            that the estimate errs on the small side.
        tokens: what that batch costs.
        workers: how many share ``free``, each with a batch of its own.
    """
    if tokens < 1 or workers < 1:
        raise ValueError(f"a batch has at least 1 token and 1 worker, got {tokens} and {workers}")
    if peak <= 0:
        return MOST_TOKENS
    usable = int(free * (1 - _MARGIN)) // workers
    return min(MOST_TOKENS, max(1, usable * tokens // peak))


def fitting_tokens(
    backend: Backend[Any],
    sample: Sequence[Candidate],
    cost: BatchCost,
    memory: DeviceMemory,
    *,
    kept: int = 0,
    workers: int = 1,
) -> int:
    """Score ``sample`` and derive the token budget of batches like it on this backend's device.

    Run the backend once before: what a first call allocates for good is no part of a batch. A sample that is too large
    is halved until it fits.

    Args:
        backend: what will serve.
        sample: candidates of full size, about as many as a batch has.
        cost: tokens that a batch costs.
        memory: of the backend's device.
        kept: bytes that the backend may yet keep beside its batches.
        workers: backends on the same device.
    """
    while sample:
        try:
            # Bound now: the loop goes on with another sample.
            peak = memory.peak(lambda batch=sample: backend.score(backend.collate(batch)))  # type: ignore[misc]
        except OutOfMemory:
            sample = sample[: len(sample) // 2]
            continue
        free, tokens = memory.free() - kept, cost(sample)
        budget = token_budget(free=free, peak=peak, tokens=tokens, workers=workers)
        logger.info(
            "token budget on %s: %d; %d tokens took %.2f GiB, %.2f GiB are free for %d worker(s)",
            backend.device,
            budget,
            tokens,
            peak / 2**30,
            free / 2**30,
            workers,
        )
        return budget
    logger.warning("token budget on %s: 1; not even a single candidate of full size fits", backend.device)
    return 1
