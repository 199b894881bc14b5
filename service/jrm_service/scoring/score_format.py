"""The byte format of stored scores: exact, so that every float survives bit for bit, and checked when read. Pure."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from hashlib import blake2b
from typing import Any

from .types import Dimension, Score

_FORMAT = b"JRM1"
_DIGEST_BYTES = 16
_HEAD = len(_FORMAT) + _DIGEST_BYTES


def encode(key: bytes, score: Score) -> bytes:
    """Return a score as bytes: format, digest of key and body, body. Raises ValueError if it is not finite."""
    document = {
        "reward": float(score.reward),
        "reward_std": _optional(score.reward_std),
        "dimensions": {name: [float(d.mean), _optional(d.std)] for name, d in score.dimensions.items()},
    }
    body = json.dumps(document, allow_nan=False, separators=(",", ":")).encode()  # shortest repr: reads back exactly
    return _FORMAT + _digest(key, body) + body


def decode(key: bytes, value: bytes, dimensions: Collection[str] | None = None) -> Score:
    """Return the score that ``encode`` got with this key.

    Raises ValueError for anything else: other or damaged bytes, the score of another key, another format, a number
    that is not finite, or dimensions other than ``dimensions``, if these are known.
    """
    body = value[_HEAD:]
    if value[: len(_FORMAT)] != _FORMAT or value[len(_FORMAT) : _HEAD] != _digest(key, body):
        raise ValueError("not a score of this key")
    try:
        score = _score(json.loads(body))
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a score: {type(error).__name__}") from None
    if not score.finite:
        raise ValueError("not finite")
    if dimensions is not None and set(score.dimensions) != set(dimensions):
        raise ValueError("other dimensions")
    return score


def _digest(key: bytes, body: bytes) -> bytes:
    """The digest that reveals damage, and a value that belongs to another key."""
    return blake2b(len(key).to_bytes(8, "little") + key + body, digest_size=_DIGEST_BYTES).digest()


def _optional(value: float | None) -> float | None:
    return None if value is None else float(value)


def _score(document: Mapping[str, Any]) -> Score:
    dimensions = {}
    for name, (mean, std) in document["dimensions"].items():
        dimensions[name] = Dimension(_number(mean), None if std is None else _number(std))
    std = document["reward_std"]
    return Score(_number(document["reward"]), None if std is None else _number(std), dimensions)


def _number(value: Any) -> float:
    if not isinstance(value, float):
        raise TypeError("not a float")
    return value
