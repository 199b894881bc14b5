"""The token budget of a batch: a device's free memory divided by the measured memory per token."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from .backend import Backend, OutOfMemory
from .planner import BatchCost
from .types import Candidate

logger = logging.getLogger(__name__)

DEFAULT_TOKENS = 16_384
"""The budget where memory sets no measurable limit: on a CPU, where long rows are slower anyway."""

# Matrix products of this many rows keep any GPU busy: with more, callers would only wait longer for their batch.
MOST_TOKENS = 65_536
# For batches unlike the measured one: longer contexts with the same number of tokens, and fragmentation.
_MARGIN = 0.25


class DeviceMemory(Protocol):
    """The memory of a device, in bytes."""

    def free(self) -> int:
        """What this process may still take, including what its allocator holds in reserve."""
        ...

    def peak(self, run: Callable[[], object]) -> int:
        """The peak of ``run`` beyond what is in use now. Raises what ``run`` raises."""
        ...


def token_budget(*, free: int, peak: int, tokens: int, workers: int = 1) -> int:
    """Return the tokens of a batch that fits, at least 1 and at most MOST_TOKENS.

    Args:
        free: bytes that batches may take.
        peak: bytes that a batch of ``tokens`` took. Its fixed part is counted as if it grew with the tokens, so that
            the estimate is too small rather than too large.
        tokens: the cost of that batch.
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

    Run the backend once before: a first call also allocates memory that it never frees. A sample that is too large is
    halved until it fits.

    Args:
        backend: the backend that will serve.
        sample: candidates of full size, about as many as a batch has.
        cost: the tokens that a batch costs.
        memory: of the backend's device.
        kept: bytes that the backend may still come to keep, such as image features.
        workers: how many backends are on the same device.
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
