"""Backends and a preparer without a model, for tests: yours as much as ours. No torch, no weights, no GPU.

Backends are combined by wrapping one in another::

    recording = RecordingBackend(NaNBackend(FakeBackend(), when=lambda candidate: candidate.instruction == "break"))
    batcher = Batcher([LocalWorker(recording)], max_batch_tokens=16_384, hang_timeout_s=60.0, metrics=metrics)

``jrm serve --backend fake`` serves a FakePreparer and a FakeBackend: the whole HTTP contract, without waiting, with
numbers that mean nothing and never change.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import blake2b

import numpy as np
from PIL import Image as PILImage

from jrm_service.errors import ImageTooLarge, InstructionTooLong

from .backend import Backend, BatchResult, OutOfMemory
from .preparing import sources_problem
from .types import Candidate, Dimension, Image, Score, Text, TokenSequence, combine

FakeBatch = tuple[Candidate, ...]
FakeLike = Backend[FakeBatch]

DIMENSIONS = ("instruction_following", "visual_quality")
_TOKEN_SIDE = 32  # pixels of an image's side per token, as in Qwen3-VL
_MAX_SIDE = 448
_MAX_ASPECT = 200
_PROMPT_TOKENS = 380  # about what the paper's prompts (C.1, C.2) take


class FakePreparer:
    """Turns images and instructions into candidates of plausible length; implements Preparer.

    ``Image.key`` digests every pixel at full size, so any two different images are different candidates; ``pixels`` is
    only a thumbnail of at most 64 x 64, so that waiting candidates take little memory. Token ids are byte values.

    ::

        preparer = FakePreparer()
        candidate = preparer.candidate([preparer.image(source)], preparer.image(edited), "make the car red")

    ``max_sources`` is that of the checkpoint it stands for: 0 for one that takes no source image.
    """

    def __init__(self, *, max_tokens: int = 32_768, max_sources: int = 1) -> None:
        self._max_tokens = max_tokens
        self.max_sources = max_sources

    def image(self, rgb: PILImage.Image) -> Image:
        """Digest an RGB image. Raises ImageTooLarge for an aspect ratio over 200."""
        width, height = rgb.size
        if max(width, height) > _MAX_ASPECT * min(width, height):
            raise ImageTooLarge(f"aspect ratio over {_MAX_ASPECT}: {width} x {height}")
        scale = min(1.0, _MAX_SIDE / max(width, height))
        tokens = math.ceil(width * scale / _TOKEN_SIDE) * math.ceil(height * scale / _TOKEN_SIDE)
        key = blake2b(f"{width}x{height}".encode(), digest_size=16)
        key.update(rgb.tobytes())
        thumbnail = rgb.reduce(math.ceil(max(width, height) / 64))
        return Image(key=key.digest(), pixels=np.array(thumbnail, dtype=np.uint8), tokens=tokens)

    @property
    def most_image_bytes(self) -> int:
        """A bound on the thumbnail's bytes."""
        return 64 * 64 * 3

    def candidate(self, sources: Sequence[Image], edited: Image, instruction: str) -> Candidate:
        """Build two passes, sources first.

        Raises InstructionTooLong when a pass exceeds ``max_tokens``, ValueError for a number of sources that is not
        taken.
        """
        problem = sources_problem(len(sources), self.max_sources)
        if problem is not None:
            raise ValueError(f"the fake {problem}")
        prompt = Text((0,) * _PROMPT_TOKENS + tuple(instruction.encode("utf-8", "replace")))
        opening, between = Text((1,) * 5), Text((2,) * 2)
        images = tuple(segment for image in (*sources, edited) for segment in (image, between))
        passes = tuple(
            TokenSequence((opening, *images, prompt, Text((number,))), tail=(3,) * 5)
            for number in range(len(DIMENSIONS))
        )
        if passes[0].tokens > self._max_tokens:
            raise InstructionTooLong(f"{passes[0].tokens} tokens; the model reads at most {self._max_tokens}")
        return Candidate(tuple(sources), edited, instruction, passes)


class FakeBackend:
    """Scores from digests, without delay: equal (sources, edited, instruction) give equal numbers on every machine.

    Means lie in [-2, 2), standard deviations in [0.05, 0.55), rewards are combined by ``mean``. The numbers say nothing
    about the images.

    ::

        backend = FakeBackend()
        scored = backend.score(backend.collate([candidate]))
        scored.outcomes[0].dimensions["visual_quality"].mean
    """

    def __init__(self, device: str = "fake") -> None:
        self.device = device

    def collate(self, candidates: Sequence[Candidate]) -> FakeBatch:
        """Keep the candidates as they are."""
        return tuple(candidates)

    def score(self, batch: FakeBatch) -> BatchResult:
        """Score every candidate; nothing is shared, so all tokens count as computed."""
        return BatchResult([fake_score(candidate) for candidate in batch], sum(candidate.tokens for candidate in batch))


def fake_score(candidate: Candidate) -> Score:
    """The score that FakeBackend returns for a candidate, for tests to compare with."""
    dimensions = {name: _fake_dimension(candidate, name) for name in DIMENSIONS}
    reward, reward_std = combine(dimensions, dict.fromkeys(DIMENSIONS, 1.0), "mean")
    return Score(reward, reward_std, dimensions)


def _fake_dimension(candidate: Candidate, name: str) -> Dimension:
    digest = blake2b(digest_size=16, person=name.encode()[:16])
    keys = [image.key for image in candidate.images]
    for part in (*keys, candidate.instruction.encode("utf-8", "replace")):
        digest.update(len(part).to_bytes(8, "little") + part)
    first, second = (int.from_bytes(half, "little") / 2**64 for half in (digest.digest()[:8], digest.digest()[8:]))
    return Dimension(mean=4.0 * first - 2.0, std=0.05 + 0.5 * second)


class _Wrapper:
    """Delegates everything to an inner backend."""

    def __init__(self, inner: FakeLike) -> None:
        self._inner = inner
        self.device = inner.device

    def collate(self, candidates: Sequence[Candidate]) -> FakeBatch:
        """Collate as the inner backend does."""
        return self._inner.collate(candidates)

    def score(self, batch: FakeBatch) -> BatchResult:
        """Score as the inner backend does."""
        return self._inner.score(batch)


class RaisingBackend(_Wrapper):
    """Raises for every batch that holds a candidate chosen by ``when``: a bug, out of memory, a dead device.

    ::

        RaisingBackend(FakeBackend())                                                     # always a RuntimeError
        RaisingBackend(FakeBackend(), when=lambda candidate: "boom" in candidate.instruction)
        RaisingBackend(FakeBackend(), error=lambda: WorkerLost("the device fell off the bus"))
    """

    def __init__(
        self,
        inner: FakeLike,
        *,
        when: Callable[[Candidate], bool] = lambda candidate: True,
        error: Callable[[], BaseException] = lambda: RuntimeError("raised by RaisingBackend"),
    ) -> None:
        super().__init__(inner)
        self._when = when
        self._error = error

    def score(self, batch: FakeBatch) -> BatchResult:
        """Raise, or score as the inner backend does."""
        if any(self._when(candidate) for candidate in batch):
            raise self._error()
        return self._inner.score(batch)


class OutOfMemoryBackend(_Wrapper):
    """A device whose memory holds ``tokens`` at once: a larger batch raises OutOfMemory.

    ::

        OutOfMemoryBackend(FakeBackend(), tokens=4_000)
    """

    def __init__(self, inner: FakeLike, *, tokens: int) -> None:
        super().__init__(inner)
        self._tokens = tokens

    def score(self, batch: FakeBatch) -> BatchResult:
        """Raise for what does not fit, else score as the inner backend does."""
        needed = sum(candidate.tokens for candidate in batch)
        if needed > self._tokens:
            raise OutOfMemory(f"{needed} tokens, {self.device} holds {self._tokens}")
        return self._inner.score(batch)


class NaNBackend(_Wrapper):
    """Gives a NaN reward to the candidates chosen by ``when``; the others in the batch keep their scores.

    ::

        NaNBackend(FakeBackend(), when=lambda candidate: candidate.edited.key == poisoned.key)
    """

    def __init__(self, inner: FakeLike, *, when: Callable[[Candidate], bool] = lambda candidate: True) -> None:
        super().__init__(inner)
        self._when = when

    def score(self, batch: FakeBatch) -> BatchResult:
        """Score as the inner backend does, then set the chosen rewards to NaN."""
        scored = self._inner.score(batch)
        outcomes = [
            replace(outcome, reward=math.nan) if isinstance(outcome, Score) and self._when(candidate) else outcome
            for candidate, outcome in zip(batch, scored.outcomes, strict=True)
        ]
        return replace(scored, outcomes=outcomes)


class SlowBackend(_Wrapper):
    """A slow device: a batch takes a set time, or exactly as long as the test wants.

    A batch of n takes ``seconds + n * seconds_per_candidate``: a device of known speed, for load tests. With
    ``gated=True`` every batch stops on the device until it is let through, so a test knows where it is without
    sleeping::

        slow = SlowBackend(FakeBackend(), gated=True)
        ...                         # put a candidate
        slow.wait_entered()         # blocks until a batch is on the device
        ...                         # whatever should happen meanwhile
        slow.let_through()          # one batch; slow.open() lets all through from now on

    ``wait_entered`` blocks its thread; in a coroutine: ``await asyncio.to_thread(slow.wait_entered)``.
    """

    def __init__(
        self, inner: FakeLike, *, seconds: float = 0.0, seconds_per_candidate: float = 0.0, gated: bool = False
    ) -> None:
        super().__init__(inner)
        self._seconds = seconds
        self._seconds_per_candidate = seconds_per_candidate
        self._entered = threading.Semaphore(0)
        self._gate = threading.Semaphore(0)
        self._open = threading.Event()
        if not gated:
            self._open.set()

    def score(self, batch: FakeBatch) -> BatchResult:
        """Wait at the gate, then for the set time, then score as the inner backend does."""
        self._entered.release()
        if not self._open.is_set():
            self._gate.acquire()
            if self._open.is_set():
                self._gate.release()  # let the next waiting batch through
        seconds = self._seconds + len(batch) * self._seconds_per_candidate
        if seconds:
            time.sleep(seconds)  # the time that a device would take
        return self._inner.score(batch)

    def wait_entered(self, batches: int = 1, timeout_s: float = 30.0) -> None:
        """Block until that many more batches have reached the device. Raises TimeoutError if one does not."""
        for _ in range(batches):
            if not self._entered.acquire(timeout=timeout_s):
                raise TimeoutError(f"no batch came to the device within {timeout_s} s")

    def let_through(self, batches: int = 1) -> None:
        """Let that many batches through the gate, beginning with one that waits there."""
        self._gate.release(batches)

    def open(self) -> None:
        """Remove the gate, also for batches that wait there."""
        self._open.set()
        self._gate.release()


class RecordingBackend(_Wrapper):
    """Records the batches that reached the device, in order and whatever their outcome, as ``batches``.

    ::

        recording = RecordingBackend(FakeBackend())
        ...
        assert [len(batch) for batch in recording.batches] == [1, 12]
    """

    def __init__(self, inner: FakeLike) -> None:
        super().__init__(inner)
        self.batches: list[FakeBatch] = []
        self.collated: list[FakeBatch] = []

    def collate(self, candidates: Sequence[Candidate]) -> FakeBatch:
        """Record the candidates, then collate as the inner backend does."""
        self.collated.append(tuple(candidates))
        return self._inner.collate(candidates)

    def score(self, batch: FakeBatch) -> BatchResult:
        """Record the batch, then score as the inner backend does."""
        self.batches.append(batch)
        return self._inner.score(batch)

    @property
    def seen(self) -> list[Candidate]:
        """Every candidate that reached the device, once per run."""
        return [candidate for batch in self.batches for candidate in batch]
