"""The feature cache: an LRU of image features on the device, bounded in bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Features:
    """The vision tower's output for one image: ``embeds`` [tokens, H] and the DeepStack features, [tokens, H] each."""

    embeds: torch.Tensor
    deepstack: tuple[torch.Tensor, ...]

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return sum(tensor.nbytes for tensor in (self.embeds, *self.deepstack))


class FeatureCache:
    """Drops the least recently used features beyond ``max_bytes``. Thread-safe: collating reads, scoring fills it."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held: OrderedDict[bytes, Features] = OrderedDict()
        self._lock = threading.Lock()
        self.nbytes = 0

    def __contains__(self, key: bytes) -> bool:
        with self._lock:
            return key in self._held

    def get(self, key: bytes) -> Features | None:
        """Return the features, which become the most recently used, or None."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
            return self._held.get(key)

    def clear(self) -> bool:
        """Drop everything, and return whether there was anything."""
        with self._lock:
            held = bool(self._held)
            self._held.clear()
            self.nbytes = 0
            return held

    @property
    def room(self) -> int:
        """Bytes that the cache may still grow by."""
        return self._max_bytes - self.nbytes

    def put(self, key: bytes, features: Features) -> None:
        """Keep features, and drop the least recently used if necessary. Features larger than the cache are not kept."""
        if features.nbytes > self._max_bytes:
            return
        with self._lock:
            old = self._held.pop(key, None)
            self._held[key] = features
            self.nbytes += features.nbytes - (old.nbytes if old else 0)
            while self.nbytes > self._max_bytes:
                self.nbytes -= self._held.popitem(last=False)[1].nbytes
