"""Where the service asks for scores that are known, on the way from preprocessing to the queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from PIL import Image as PILImage
from prometheus_client import CollectorRegistry

from jrm_service.errors import InternalError
from jrm_service.metrics import Metrics
from jrm_service.scoring.cache import ScoreCache, ScoreStore
from jrm_service.scoring.fakes import FakeBackend, FakePreparer, RecordingBackend, fake_score
from jrm_service.scoring.service import GroupInput, ImageInput, ImageLimits, ScoreResult, ScoreService
from jrm_service.scoring.types import Candidate, Image, Score, ServedModel
from service.scoring.support import run, running
from support.pictures import encode, photo

MODEL = ServedModel("fake", "fake", {})
SOURCE = ImageInput.of("source", encode(photo(32, 32)))
EDITS = [ImageInput.of(f"edits[{seed}]", encode(photo(32, 32, seed=seed))) for seed in range(1, 9)]
GROUP = GroupInput(SOURCE, "make it blue", EDITS)


class NobodyYet:
    """A store that answers nobody before everybody has asked; it has nothing."""

    def __init__(self, everybody: int) -> None:
        self._left = everybody
        self._complete = asyncio.Event()

    async def get(self, key: bytes) -> bytes | None:
        self._left -= 1
        if self._left == 0:
            self._complete.set()
        await self._complete.wait()
        return None

    def put(self, key: bytes, value: bytes) -> None:
        pass


@asynccontextmanager
async def service(backend: RecordingBackend, store: ScoreStore | None = None, **options) -> AsyncIterator[ScoreService]:
    metrics = options.pop("metrics", None) or Metrics(CollectorRegistry())
    cache = options.pop("cache", None) or ScoreCache(
        [], max_entries=options.pop("max_entries", 100), metrics=metrics, store=store
    )
    async with running(backend, metrics=metrics, on_score=cache.remember) as batcher:
        made = ScoreService(
            MODEL,
            options.pop("preparer", FakePreparer()),
            batcher,
            cache=cache,
            limits=ImageLimits(max_pixels=10**6, max_decoded_bytes=10**8, max_prepared_bytes=10**8),
            max_instruction_chars=100,
            threads=options.pop("threads", 2),
            metrics=metrics,
        )
        try:
            yield made
        finally:
            made.close()


def cached(result: ScoreResult) -> list[bool]:
    return [one for group in result.cached for one in group]


def test_a_request_asks_the_store_for_all_of_its_candidates_at_once() -> None:
    """So whatever bounds one lookup bounds what the store adds to a request. One by one they would wait for ever."""

    async def main() -> None:
        backend = RecordingBackend(FakeBackend())
        async with service(backend, NobodyYet(len(EDITS)), threads=1) as made:
            result = await made.score([GROUP], timeout_s=50.0)
        assert sorted(map(repr, result.groups[0])) == sorted(repr(fake_score(one)) for one in backend.seen)

    run(main())


def test_a_second_request_costs_no_device_and_has_the_same_scores() -> None:
    async def main() -> None:
        backend = RecordingBackend(FakeBackend())
        async with service(backend) as made:
            first = await made.score([GROUP], timeout_s=50.0)
            second = await made.score([GROUP], timeout_s=50.0)
        assert len(backend.seen) == len(EDITS)
        assert repr(second.groups) == repr(first.groups)
        assert (cached(first), cached(second)) == ([False] * 8, [True] * 8)
        assert second.tokens == first.tokens == first.tokens_computed
        assert (second.tokens_computed, second.queue_ms, second.inference_ms) == (0, 0.0, 0.0)

    run(main())


def test_only_what_is_new_is_computed() -> None:
    async def main() -> None:
        backend = RecordingBackend(FakeBackend())
        async with service(backend) as made:
            await made.score([GroupInput(SOURCE, "make it blue", EDITS[:5])], timeout_s=50.0)
            mixed = await made.score([GROUP], timeout_s=50.0)
        assert cached(mixed) == [True] * 5 + [False] * 3
        assert len(backend.seen) == len(EDITS)

    run(main())


def test_identical_edits_of_one_request_get_one_score() -> None:
    async def main() -> None:
        backend = RecordingBackend(FakeBackend())
        async with service(backend, max_entries=0, threads=1) as made:
            result = await made.score([GroupInput(SOURCE, "make it blue", [EDITS[0]] * 12)], timeout_s=50.0)
        [scores] = result.groups
        assert len(set(map(repr, scores))) == 1
        assert cached(result) == [False] * 12

    run(main())


# --- defects on the way to the queue ----------------------------------------------------------------------------------


class BrokenPreparer(FakePreparer):
    """Raises where it is told to."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self._where = where

    def image_bytes(self, width: int, height: int) -> int:
        self._break("image_bytes")
        return super().image_bytes(width, height)

    def image(self, rgb: PILImage.Image) -> Image:
        self._break("image")
        return super().image(rgb)

    def candidate(self, source: Image, edited: Image, instruction: str) -> Candidate:
        self._break("candidate")
        return super().candidate(source, edited, instruction)

    def _break(self, where: str) -> None:
        if where == self._where:
            raise RuntimeError("/srv/secret/path.py")


class BrokenCache(ScoreCache):
    """Fails to look up every candidate, or those of one instruction."""

    def __init__(self, instruction: str | None = None) -> None:
        super().__init__([], max_entries=100, metrics=Metrics(CollectorRegistry()))
        self._instruction = instruction

    def recall(self, candidate: Candidate) -> Score | None:
        if self._instruction in (None, candidate.instruction):
            raise RuntimeError("/srv/secret/path.py")
        return super().recall(candidate)


class BrokenStore:
    """A store with a defect, which is not the same as one that cannot be reached."""

    async def get(self, key: bytes) -> bytes | None:
        raise RuntimeError("/srv/secret/path.py")

    def put(self, key: bytes, value: bytes) -> None:
        pass


class BreakingMetrics(Metrics):
    """Cannot count scores once it is ``broken``."""

    broken = False

    def observe_score(self, reward: float, dimensions: Mapping[str, float]) -> None:
        if self.broken:
            raise RuntimeError("/srv/secret/path.py")
        super().observe_score(reward, dimensions)


@pytest.mark.parametrize(
    "broken",
    [
        {"preparer": BrokenPreparer("image_bytes")},
        {"preparer": BrokenPreparer("image")},
        {"preparer": BrokenPreparer("candidate")},
        {"cache": BrokenCache()},
        {"store": BrokenStore()},
    ],
    ids=["header", "image", "tokenizer", "cache", "store"],
)
def test_a_defect_in_preparing_is_told_at_once_and_logged(
    broken: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The deadline is an hour away: whoever waits for it fails the test by its own timeout."""

    async def main() -> None:
        async with service(RecordingBackend(FakeBackend()), **broken) as made:
            result = await made.score([GROUP], timeout_s=3600.0)
            assert made.batcher.depth == 0
        assert [type(outcome) for outcome in result.groups[0]] == [InternalError] * len(EDITS)
        assert "/" not in str(result.groups[0][0])

    run(main())
    assert "RuntimeError: /srv/secret/path.py" in caplog.text
    assert "Traceback" in caplog.text


def test_a_defect_in_preparing_one_candidate_leaves_the_others_their_scores() -> None:
    async def main() -> None:
        async with service(RecordingBackend(FakeBackend()), cache=BrokenCache("make it red")) as made:
            red = GroupInput(SOURCE, "make it red", EDITS[:2])
            result = await made.score([red, GROUP], timeout_s=3600.0)
        assert [type(outcome) for outcome in result.groups[0]] == [InternalError] * 2
        assert [type(outcome) for outcome in result.groups[1]] == [Score] * len(EDITS)

    run(main())


def test_a_kept_score_that_cannot_be_counted_keeps_nobody_waiting(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        metrics = BreakingMetrics(CollectorRegistry())
        async with service(RecordingBackend(FakeBackend()), metrics=metrics) as made:
            first = await made.score([GROUP], timeout_s=3600.0)
            metrics.broken = True
            second = await made.score([GROUP], timeout_s=3600.0)
        assert repr(second.groups) == repr(first.groups)

    run(main())
    assert "RuntimeError: /srv/secret/path.py" in caplog.text
