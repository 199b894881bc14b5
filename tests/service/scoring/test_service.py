"""Where the service asks for scores that are known, on the way from preprocessing to the queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry

from jrm_service.metrics import Metrics
from jrm_service.scoring.cache import ScoreCache, ScoreStore
from jrm_service.scoring.fakes import FakeBackend, FakePreparer, RecordingBackend, fake_score
from jrm_service.scoring.service import GroupInput, ImageInput, ImageLimits, ScoreResult, ScoreService
from jrm_service.scoring.types import ServedModel
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
    metrics = Metrics(CollectorRegistry())
    cache = ScoreCache([], max_entries=options.pop("max_entries", 100), metrics=metrics, store=store)
    async with running(backend, metrics=metrics, on_score=cache.remember) as batcher:
        made = ScoreService(
            MODEL,
            FakePreparer(),
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
