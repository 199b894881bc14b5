"""The score cache: scores are kept in this process and, if there is a store, shared with other replicas.

The key is everything that a score depends on: the checkpoint and how it is run (``scope``), the preprocessed pixels of
all images, and the instruction. So a cached score is one that this server could have computed, and bitwise the one that
was computed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from hashlib import blake2b
from typing import Protocol

from jrm_service.metrics import Metrics, begin
from jrm_service.versions import installed

from . import score_format
from .types import Candidate, Score, ServedModel

KEY_BYTES = 32
# The packages that compute a score from the checkpoint: another version may round differently.
_ENGINE = ("jrm-serve", "torch", "transformers", "tokenizers")


class ScoreStore(Protocol):
    """A key-value store outside this process. It may lose values, be slow or be down; it never raises."""

    async def get(self, key: bytes) -> bytes | None:
        """Return the value or None, within a bounded time."""
        ...

    def put(self, key: bytes, value: bytes) -> None:
        """Store a value in the background; returns at once."""
        ...


def scope_of(model: ServedModel) -> list[str]:
    """What a score depends on besides the candidate: fingerprint, precision, engine, kinds of device, versions."""
    facts = [str(model.description.get(name)) for name in ("backend", "precision", "engine")]
    kinds = {device.split(":")[0] for device in str(model.description.get("device")).split(",")}
    return [model.fingerprint, *facts, ",".join(sorted(kinds)), *(installed(name) or "none" for name in _ENGINE)]


class ScoreCache:
    """The most recently used scores, in front of an optional ``store``. Use it from one event loop.

    Args:
        scope: what a score depends on besides the candidate, as from ``scope_of``; scopes share no scores.
        max_entries: scores that are kept in this process, about 1 KiB each; 0 keeps none.
        metrics: counts hits, misses and errors.
        dimensions: the names that a stored score must have; None if they are not known.
        store: shared with other processes.
    """

    def __init__(
        self,
        scope: Sequence[str],
        *,
        max_entries: int,
        metrics: Metrics,
        dimensions: Collection[str] | None = None,
        store: ScoreStore | None = None,
    ) -> None:
        self.store = store
        self._scope = _hash(part.encode() for part in scope)
        self._max_entries = max_entries
        self._metrics = metrics
        self._dimensions = dimensions
        self._kept: OrderedDict[bytes, Score] = OrderedDict()
        metrics.cache_entries.set_function(lambda: len(self._kept))
        if store is not None:
            begin(metrics.cache_errors, "redis", "invalid")

    def key(self, candidate: Candidate) -> bytes:
        """32 bytes that identify a candidate within this scope."""
        # Lone surrogates are not valid text, but they must not make two instructions equal.
        instruction = candidate.instruction.encode("utf-8", "surrogatepass")
        return _hash([self._scope, *(image.key for image in candidate.images), instruction])

    def recall(self, candidate: Candidate) -> Score | None:
        """Return the score if it is kept in this process."""
        if self._max_entries == 0:
            return None
        score = self._recent(self.key(candidate))
        self._count("memory", score)
        return score

    async def fetch(self, candidate: Candidate) -> Score | None:
        """Return the score if the store has it, or if it was computed meanwhile."""
        if self.store is None:
            return None
        key = self.key(candidate)
        value = await self.store.get(key)
        score = None if value is None else self._decode(key, value)
        self._count("redis", score)
        recent = self._recent(key)
        if recent is None and score is not None:
            self._keep(key, score)
        return recent or score

    def remember(self, candidate: Candidate, score: Score) -> None:
        """Keep a score that was computed. A score that is not finite is an error, and is not kept."""
        if not score.finite:
            return
        key = self.key(candidate)
        self._keep(key, score)
        if self.store is not None:
            self.store.put(key, score_format.encode(key, score))

    def _recent(self, key: bytes) -> Score | None:
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def _keep(self, key: bytes, score: Score) -> None:
        self._kept[key] = score
        self._kept.move_to_end(key)
        while len(self._kept) > self._max_entries:
            self._kept.popitem(last=False)

    def _decode(self, key: bytes, value: bytes) -> Score | None:
        try:
            return score_format.decode(key, value, self._dimensions)
        except ValueError:
            self._metrics.cache_errors.labels("redis", "invalid").inc()
            return None

    def _count(self, tier: str, score: Score | None) -> None:
        (self._metrics.cache_misses if score is None else self._metrics.cache_hits).labels(tier).inc()


def _hash(parts: Iterable[bytes]) -> bytes:
    """A digest of the parts and their lengths: ("ab", "c") and ("a", "bc") differ."""
    digest = blake2b(digest_size=KEY_BYTES)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()
