"""The reward functions that a Flow-GRPO trainer plugs in (the two signatures of its ``flow_grpo/rewards.py``).

``jrm_reward`` replaces ``multi_score``, which the trainer calls. ``jrm_score`` is one of the scorers that
``multi_score`` combines; that function calls its factories without arguments and its scorers without ``ref_images``::

    score_functions["jrm"] = lambda: jrm_score("http://localhost:8000", source_key="image", source_root=dataset)

Both may be called from several threads at once and pickled; after a fork the child opens connections of its own.

They are pinned to the checkpoint of the first reply (``pin_fingerprint``). Where ``torch.distributed`` is initialised,
every rank must make them and call them equally often, with images or without: when a call fails on one rank, it raises
the same error on all of them (``distributed``).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

from jrm_client import arguments
from jrm_client.aio import DEFAULT_TIMEOUT, OnError
from jrm_client.arguments import Sources
from jrm_client.client import JRMClient
from jrm_client.errors import APIStatusError
from jrm_client.images import ImageInput
from jrm_client.ranks import Outcome, Ranks
from jrm_client.results import Score, ScoreError
from jrm_client.retry import MAX_RETRIES

_AVG = "avg"  # what trainers call the reward
_NON_GROUP_MEMBER = -100
_NO_SOURCES = "no source images: pass ref_images, or name the metadata key that holds each source with source_key"


def jrm_score(
    url: str | Sequence[str],
    *,
    source_key: str | None = None,
    source_root: str | os.PathLike[str] | None = None,
    api_key: str | None = None,
    timeout: float = DEFAULT_TIMEOUT,
    max_retries: int = MAX_RETRIES,
    on_error: OnError = "raise",
    pin_fingerprint: bool | str = True,
    std_penalty: float = 0.0,
    distributed: Any = None,
) -> JRMScore:
    """Return ``fn(images, prompts, metadata, ref_images=None) -> (list[float], {})``: the reward of each edit.

    ``source_key``: the key of an edit's metadata that holds its source (a path, bytes, a PIL image, or a list of them),
    with paths taken relative to ``source_root``. When it is given, it wins over ``ref_images``; without it, sources are
    ``ref_images``. Without either, as with text-to-image trainers, edits are sent without a source: the server refuses
    that unless its checkpoint takes none.
    ``std_penalty``: that many standard deviations are subtracted from each reward, which makes it a lower confidence
    bound: an edit that the model is unsure about is worth less. The checkpoint has to predict standard deviations.
    ``distributed``: None compares outcomes over all ranks when ``torch.distributed`` is initialised, True insists on
    it, False does not, and a process group limits it to its members. The other arguments are those of ``JRMClient``.
    """
    client = _client(url, api_key, timeout, max_retries, pin_fingerprint)
    return JRMScore(client, source_key, source_root, on_error, std_penalty, distributed)


def jrm_reward(
    url: str | Sequence[str],
    *,
    source_key: str | None = None,
    source_root: str | os.PathLike[str] | None = None,
    dimensions: Sequence[str] | None = None,
    api_key: str | None = None,
    timeout: float = DEFAULT_TIMEOUT,
    max_retries: int = MAX_RETRIES,
    on_error: OnError = "raise",
    pin_fingerprint: bool | str = True,
    std_penalty: float = 0.0,
    distributed: Any = None,
) -> JRMReward:
    """Return ``fn(images, prompts, metadata, ref_images=None, only_strict=True) -> (dict[str, list[float]], {})``.

    The dict has ``"avg"``, the reward, and the mean of every dimension. Trainers gather these key by key over all
    ranks, so the keys and their order are the same everywhere: ``dimensions``, by default all of the checkpoint's,
    sorted. The other arguments are those of ``jrm_score``.
    """
    client = _client(url, api_key, timeout, max_retries, pin_fingerprint)
    names = arguments.dimensions(dimensions)
    keys = None if names is None else tuple(names)
    return JRMReward(client, source_key, source_root, on_error, std_penalty, distributed, keys)


class _Scorer:
    """What the two functions share: a trainer's batch -> scores."""

    def __init__(
        self,
        client: JRMClient,
        source_key: str | None,
        source_root: str | os.PathLike[str] | None,
        on_error: OnError,
        std_penalty: float,
        distributed: Any,
    ) -> None:
        arguments.choice(on_error, "on_error", ("raise", "nan"))
        penalty = arguments.number(std_penalty, "std_penalty")
        if not (math.isfinite(penalty) and penalty >= 0):
            raise ValueError(f"std_penalty={penalty}: expected a number of standard deviations, 0 or more")
        if source_key is not None:
            arguments.text(source_key, "source_key")
        if source_root is not None and not isinstance(source_root, str | os.PathLike):
            raise TypeError(f"source_root: {type(source_root).__name__}; expected a path or None")
        # Where this rank is not in a group, torch's new_group gives a number in its place.
        plain = isinstance(distributed, str | int | float) and not isinstance(distributed, bool)
        if plain and distributed != _NON_GROUP_MEMBER:
            raise TypeError(f"distributed={distributed!r}: expected None, True, False or a process group")
        self._client = client
        self._source_key = source_key
        self._source_root = None if source_root is None else Path(source_root)
        self._on_error: OnError = on_error
        self._std_penalty = penalty
        self._ranks = Ranks(distributed)

    @property
    def pinned_fingerprint(self) -> str | None:
        """The fingerprint that this function is pinned to; None before the first reply, and without pinning."""
        return self._client.pinned_fingerprint

    def close(self) -> None:
        """Close the connections. The end of the program does so too."""
        self._client.close()
        self._ranks.close()

    def _outcome(self, rewards: dict[str, list[float]], complete: bool = True) -> Outcome:
        return Outcome(rewards, complete, self._client.pinned_fingerprint)

    def _score(self, images: Any, prompts: Sequence[str], metadata: Any, ref_images: Any) -> list[Score]:
        edits = _unstack(images, "images")
        prompts = arguments.sequence(prompts, "prompts", "a list with one instruction for each image")
        for index, prompt in enumerate(prompts):
            arguments.instruction(prompt, f"prompts[{index}]")
        _check_length("prompts", len(prompts), len(edits))
        if isinstance(metadata, Sequence):
            _check_length("metadata", len(metadata), len(edits))
        sources = self._sources(metadata, ref_images, len(edits))
        pairs = zip(sources or [None] * len(edits), edits, prompts, strict=True)
        try:
            return self._client.score_batch(pairs, on_error=self._on_error)
        except APIStatusError as error:
            if sources is None and error.status == HTTPStatus.BAD_REQUEST and _is_source(error.param):
                raise ValueError(f"{_NO_SOURCES}: {error}") from error
            raise

    def _rewards(self, scores: Sequence[Score]) -> list[float]:
        """The reward of each edit, minus ``std_penalty`` standard deviations."""
        if self._std_penalty == 0:
            return [score.reward for score in scores]
        rewards = []
        for score in scores:
            if score.reward_std is None:
                raise ValueError(f"std_penalty={self._std_penalty:g}: {score.model} gives no standard deviations")
            rewards.append(score.reward - self._std_penalty * score.reward_std)
        return rewards

    def _sources(self, metadata: Any, ref_images: Any, count: int) -> Sequence[Sources] | None:
        """The source of each edit, or None if there are no sources."""
        if self._source_key is not None:
            if not isinstance(metadata, Sequence) or len(metadata) != count:
                raise ValueError(f"metadata: expected {count} dicts with the key {self._source_key!r} for the sources")
            return [self._from_metadata(row, index) for index, row in enumerate(metadata)]
        if ref_images is None:
            return None
        sources = _unstack(ref_images, "ref_images")
        _check_length("ref_images", len(sources), count)
        return sources

    def _from_metadata(self, row: Any, index: int) -> Sources:
        if not isinstance(row, Mapping) or row.get(self._source_key) is None:
            raise ValueError(f"metadata[{index}]: no source image under the key {self._source_key!r}")
        source = row[self._source_key]
        return [self._rooted(image) for image in source] if isinstance(source, list | tuple) else self._rooted(source)

    def _rooted(self, image: ImageInput) -> ImageInput:
        if self._source_root is not None and isinstance(image, str | os.PathLike):
            return self._source_root / os.fsdecode(image)
        return image


class JRMScore(_Scorer):
    """``fn(images, prompts, metadata, ref_images=None) -> (rewards, {})``; made by ``jrm_score``."""

    def __call__(
        self, images: Any, prompts: Sequence[str], metadata: Any = None, ref_images: Any = None
    ) -> tuple[list[float], dict[str, Any]]:
        """Score N edits: images [N, 3, H, W] float in [0, 1] or [N, H, W, 3] uint8, or a list of images.

        Returns N Python floats. Raises ScoreError if an edit has no score; under ``on_error="nan"`` its reward is NaN.
        Raises ValueError for lengths that differ or a missing source, FingerprintMismatch for scores of another
        checkpoint, and whatever ``JRMClient`` raises; or else what the call of another rank raised, naming that rank.
        """

        def call() -> Outcome:
            scores = self._score(images, prompts, metadata, ref_images)
            return self._outcome({_AVG: self._rewards(scores)})

        return self._ranks.agree(call).rewards[_AVG], {}


class JRMReward(_Scorer):
    """``fn(images, prompts, metadata, ref_images=None, only_strict=True) -> (rewards by key, {})``."""

    def __init__(
        self,
        client: JRMClient,
        source_key: str | None,
        source_root: str | os.PathLike[str] | None,
        on_error: OnError,
        std_penalty: float,
        distributed: Any,
        dimensions: tuple[str, ...] | None,
    ) -> None:
        super().__init__(client, source_key, source_root, on_error, std_penalty, distributed)
        self._dimensions = dimensions

    def __call__(
        self,
        images: Any,
        prompts: Sequence[str],
        metadata: Any = None,
        ref_images: Any = None,
        only_strict: bool = True,
    ) -> tuple[dict[str, list[float]], dict[str, Any]]:
        """Score N edits, given as to ``jrm_score``; every list has N Python floats. ``only_strict`` has no effect.

        Raises as ``jrm_score`` does, and under ``on_error="nan"`` still a ScoreError when every edit of the first
        batch failed and ``dimensions`` was not given: the keys that other ranks wait for are unknown then.
        """
        del only_strict  # it saves work for GenEval; a JRM score has no part that could be left out

        def call() -> Outcome:
            scores = self._score(images, prompts, metadata, ref_images)
            names = self._names(scores)
            if _AVG in (names or ()):
                raise ValueError(f'the checkpoint has a dimension named "{_AVG}", which trainers take for the reward')
            rewards = {_AVG: self._rewards(scores)}
            rewards |= {name: [score.dimensions[name].mean for score in scores] for name in names or ()}
            return self._outcome(rewards, complete=names is not None)

        outcome = self._ranks.agree(call)
        if self._dimensions is None and outcome.complete:
            self._dimensions = tuple(name for name in outcome.rewards if name != _AVG)
        return outcome.rewards, {}

    def _names(self, scores: Sequence[Score]) -> tuple[str, ...] | None:
        """The names of the dimensions; None until the first score has shown them."""
        if self._dimensions is not None or not scores:
            return self._dimensions
        failed = {index: score.error for index, score in enumerate(scores) if score.error is not None}
        if len(failed) == len(scores):
            raise ScoreError(failed, [None] * len(scores))
        return tuple(sorted(next(score for score in scores if score.error is None).dimensions))


def _client(
    url: str | Sequence[str], api_key: str | None, timeout: float, max_retries: int, pin_fingerprint: bool | str
) -> JRMClient:
    return JRMClient(url, api_key=api_key, timeout=timeout, max_retries=max_retries, pin_fingerprint=pin_fingerprint)


def _unstack(images: Any, name: str) -> list[ImageInput]:
    """A batch [N, …] or a list of images as a list; a tensor leaves its device in one copy."""
    shape = getattr(images, "shape", None)
    if shape is not None and len(shape) != 4:
        raise ValueError(f"{name}: shape {tuple(shape)}; expected float [N, 3, H, W] in [0, 1] or uint8 [N, H, W, 3]")
    if (shape is None and not isinstance(images, Sequence)) or isinstance(images, str | bytes | bytearray | memoryview):
        raise TypeError(f"{name}: {type(images).__name__}; expected a batch of four axes or a list of images")
    if hasattr(images, "detach"):
        images = images.detach().cpu()
    batch: Iterable[ImageInput] = images
    return list(batch)


def _is_source(param: str | None) -> bool:
    return param is not None and param.rpartition(".")[2] == "source"


def _check_length(name: str, length: int, count: int) -> None:
    if length != count:
        raise ValueError(f"{name}: {length} for {count} images")
