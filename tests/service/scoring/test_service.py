"""Where the service asks for scores that are known, on the way from preprocessing to the queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from PIL import Image as PILImage
from prometheus_client import CollectorRegistry

from jrm_service.errors import (
    CandidateTooLarge,
    DeadlineExceeded,
    Draining,
    InternalError,
    InvalidImage,
    InvalidRequest,
    NotReady,
)
from jrm_service.images.reader import ImageInput
from jrm_service.metrics import Metrics
from jrm_service.scoring.cache import ScoreCache, ScoreStore
from jrm_service.scoring.fakes import (
    FakeBackend,
    FakeLike,
    FakePreparer,
    OutOfMemoryBackend,
    RecordingBackend,
    SlowBackend,
    fake_score,
)
from jrm_service.scoring.line import WaitingLine
from jrm_service.scoring.local import LocalWorker
from jrm_service.scoring.service import GroupInput, ImageLimits, ScoreResult, ScoreService
from jrm_service.scoring.types import Candidate, Image, Score, ServedModel
from service.scoring.support import Counts, now, run, running, until
from support.pictures import encode, photo

MODEL = ServedModel("fake", "fake", {})
SOURCE = ImageInput.of("source", encode(photo(32, 32)))
EDITS = [ImageInput.of(f"edits[{seed}]", encode(photo(32, 32, seed=seed))) for seed in range(1, 9)]
GROUP = GroupInput([SOURCE], "make it blue", EDITS)


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
async def service(backend: FakeLike, store: ScoreStore | None = None, **options) -> AsyncIterator[ScoreService]:
    metrics = options.pop("metrics", None) or Metrics(CollectorRegistry())
    cache = options.pop("cache", None) or ScoreCache(
        [], max_entries=options.pop("max_entries", 100), metrics=metrics, store=store
    )
    line = WaitingLine(max_body_bytes=10**8, max_queue=options.pop("max_queue", 1000))
    prepared_bytes = options.pop("max_prepared_bytes", 10**8)
    budget = options.pop("budget", 1_000_000)
    async with running(
        LocalWorker(backend), metrics=metrics, budget=budget, on_score=cache.remember, on_drained=line.drained
    ) as batcher:
        made = ScoreService(
            MODEL,
            options.pop("preparer", FakePreparer()),
            batcher,
            line,
            cache=cache,
            limits=ImageLimits(max_pixels=10**6, max_decoded_bytes=10**8, max_prepared_bytes=prepared_bytes),
            max_instruction_chars=100,
            threads=options.pop("threads", 2),
            metrics=metrics,
        )
        try:
            yield made
        finally:
            made.close()
    assert (line.places_taken, line.waiting, made.prepared.in_use) == (0, 0, 0)


async def ask(made: ScoreService, *groups: GroupInput, timeout_s: float = 3600.0, tenant: str = "") -> ScoreResult:
    return await made.score(groups, deadline=now() + timeout_s, tenant=tenant)


def cached(result: ScoreResult) -> list[bool]:
    return [one for group in result.cached for one in group]


def test_a_request_asks_the_store_for_all_of_its_candidates_at_once() -> None:
    """So whatever bounds one lookup bounds what the store adds to a request. One by one they would wait for ever."""

    async def main() -> None:
        backend = RecordingBackend(FakeBackend())
        async with service(backend, NobodyYet(len(EDITS)), threads=1) as made:
            result = await ask(made, GROUP)
        assert sorted(map(repr, result.groups[0])) == sorted(repr(fake_score(one)) for one in backend.seen)

    run(main())


def test_a_second_request_costs_no_device_and_has_the_same_scores() -> None:
    async def main() -> None:
        backend = RecordingBackend(FakeBackend())
        async with service(backend) as made:
            first = await ask(made, GROUP)
            second = await ask(made, GROUP)
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
            await ask(made, GroupInput([SOURCE], "make it blue", EDITS[:5]))
            mixed = await ask(made, GROUP)
        assert cached(mixed) == [True] * 5 + [False] * 3
        assert len(backend.seen) == len(EDITS)

    run(main())


def test_identical_edits_of_one_request_get_one_score() -> None:
    async def main() -> None:
        backend = RecordingBackend(FakeBackend())
        async with service(backend, max_entries=0, threads=1) as made:
            result = await ask(made, GroupInput([SOURCE], "make it blue", [EDITS[0]] * 12))
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

    def image(self, rgb: PILImage.Image) -> Image:
        self._break("image")
        return super().image(rgb)

    def candidate(self, sources: Sequence[Image], edited: Image, instruction: str) -> Candidate:
        self._break("candidate")
        return super().candidate(sources, edited, instruction)

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


@pytest.mark.parametrize(
    "broken",
    [
        {"preparer": BrokenPreparer("image")},
        {"preparer": BrokenPreparer("candidate")},
        {"cache": BrokenCache()},
        {"store": BrokenStore()},
    ],
    ids=["image", "tokenizer", "cache", "store"],
)
def test_a_defect_in_preparing_is_told_at_once_and_logged(
    broken: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The deadline is an hour away: whoever waits for it fails the test by its own timeout."""

    async def main() -> None:
        async with service(RecordingBackend(FakeBackend()), **broken) as made:
            result = await ask(made, GROUP)
            assert made.line.places_taken == 0
        assert [type(outcome) for outcome in result.groups[0]] == [InternalError] * len(EDITS)
        assert "/" not in str(result.groups[0][0])

    run(main())
    assert "RuntimeError: /srv/secret/path.py" in caplog.text
    assert "Traceback" in caplog.text


def test_a_defect_in_preparing_one_candidate_leaves_the_others_their_scores() -> None:
    async def main() -> None:
        async with service(RecordingBackend(FakeBackend()), cache=BrokenCache("make it red")) as made:
            red = GroupInput([SOURCE], "make it red", EDITS[:2])
            result = await ask(made, red, GROUP)
        assert [type(outcome) for outcome in result.groups[0]] == [InternalError] * 2
        assert [type(outcome) for outcome in result.groups[1]] == [Score] * len(EDITS)

    run(main())


# --- places, deadlines, callers who leave -----------------------------------------------------------------------------


async def entered(slow: SlowBackend) -> None:
    await asyncio.to_thread(slow.wait_entered)


def test_a_request_waits_for_places_and_gives_each_back_when_its_candidate_has_ended() -> None:
    async def main() -> None:
        slow = SlowBackend(FakeBackend(), gated=True)
        async with service(slow, max_queue=8) as made:
            first = asyncio.create_task(ask(made, GROUP))
            await entered(slow)
            second = asyncio.create_task(ask(made, GroupInput([SOURCE], "make it red", EDITS[:2])))
            await until(lambda: made.line.waiting == 2)
            assert made.line.places_taken == 8
            slow.open()
            results = [*(await first).groups[0], *(await second).groups[0]]
            assert [type(result) for result in results] == [Score] * 10

    run(main())


def test_the_deadline_holds_wherever_a_candidate_is() -> None:
    async def main() -> None:
        slow = SlowBackend(FakeBackend(), gated=True)
        async with service(slow, max_queue=8) as made:
            first = asyncio.create_task(ask(made, GROUP))
            await entered(slow)
            late = await ask(made, GROUP, timeout_s=0.05)
            assert [type(result) for result in late.groups[0]] == [DeadlineExceeded] * 8
            assert "before it was preprocessed" in str(late.groups[0][0])
            passed = await ask(made, GROUP, timeout_s=-1.0)
            assert [type(result) for result in passed.groups[0]] == [DeadlineExceeded] * 8
            slow.open()
            await first

    run(main())


def test_a_caller_who_leaves_gives_back_all_that_it_holds_and_is_counted() -> None:
    async def main() -> None:
        slow, metrics = SlowBackend(FakeBackend(), gated=True), Metrics(CollectorRegistry())
        async with service(slow, max_queue=8, metrics=metrics) as made:
            held = asyncio.create_task(ask(made, GROUP))
            await entered(slow)
            in_line = asyncio.create_task(ask(made, GROUP))
            await until(lambda: made.line.waiting == 8)
            for leaving in (in_line, held):
                leaving.cancel()
                await asyncio.gather(leaving, return_exceptions=True)
            assert (made.line.places_taken, made.line.waiting) == (0, 0)
            await made.drain()
            slow.open()
            result = await ask(made, GroupInput([SOURCE], "make it red", EDITS))
            assert [type(score) for score in result.groups[0]] == [Score] * 8
        assert Counts(metrics).outcomes() == {"cancelled": 16, "ok": 8}

    run(main())


def test_with_memory_for_one_prepared_candidate_all_are_scored_one_after_the_other() -> None:
    async def main() -> None:
        backend = RecordingBackend(FakeBackend())
        async with service(backend, max_prepared_bytes=1) as made:
            results = await asyncio.gather(ask(made, GROUP), ask(made, GroupInput([SOURCE], "make it red", EDITS)))
        assert [type(score) for result in results for score in result.groups[0]] == [Score] * 16
        assert {len(batch) for batch in backend.batches} == {1}

    run(main())


def test_one_tenant_does_not_wait_for_all_candidates_of_another() -> None:
    async def main() -> None:
        slow = SlowBackend(FakeBackend(), gated=True)
        async with service(slow, max_queue=2) as made:
            order: list[str] = []

            async def call(tenant: str, number: int) -> None:
                await ask(made, GroupInput([SOURCE], f"{tenant} {number}", EDITS[:2]), tenant=tenant)
                order.append(tenant)

            tasks = [asyncio.create_task(call("greedy", 0))]
            await entered(slow)
            tasks += [asyncio.create_task(call("greedy", number)) for number in range(1, 20)]
            await until(lambda: made.line.waiting == 2 * 19)
            tasks.append(asyncio.create_task(call("modest", 0)))
            await until(lambda: made.line.waiting == 2 * 20)
            slow.open()
            await asyncio.gather(*tasks)
        assert "modest" in order[:3]

    run(main())


def test_memory_that_others_hold_is_a_reason_to_send_the_request_again() -> None:
    async def main() -> None:
        async with service(OutOfMemoryBackend(FakeBackend(), tokens=1)) as made:
            with pytest.raises(NotReady, match="do not fit") as refused:
                await ask(made, GROUP)
            assert refused.value.retry_after
        async with service(OutOfMemoryBackend(FakeBackend(), tokens=1), budget=1) as made:
            result = await ask(made, GROUP)
            assert [type(score) for score in result.groups[0]] == [CandidateTooLarge] * 8

    run(main())


def source(seed: int, name: str = "source") -> ImageInput:
    return ImageInput.of(name, encode(photo(32, 32, seed=seed)))


def test_every_number_of_sources_has_scores_of_its_own_and_a_list_of_one_is_the_bare_image() -> None:
    async def main() -> None:
        backend = RecordingBackend(FakeBackend())
        several = [[source(1)], [source(1), source(2)], [source(2), source(1)], [source(1), source(1)], [source(1)]]
        async with service(backend, preparer=FakePreparer(max_sources=3)) as made:
            result = await ask(made, *[GroupInput(sources, "x", EDITS[4:6]) for sources in several])
            again = await ask(made, *[GroupInput(sources, "x", EDITS[4:6]) for sources in several])
        assert {len(candidate.sources) for candidate in backend.seen} == {1, 2}
        assert len(backend.seen) == 8
        assert result.images == 4
        assert cached(again) == [True] * 10
        assert [repr(group) for group in again.groups] == [repr(group) for group in result.groups]
        assert len({repr(group) for group in result.groups}) == 4
        assert repr(result.groups[0]) == repr(result.groups[4])

    run(main())


def test_without_a_source() -> None:
    async def main() -> None:
        backend = RecordingBackend(FakeBackend())
        async with service(backend, preparer=FakePreparer(max_sources=0)) as made:
            result = await ask(made, GroupInput([], "a red car", EDITS[:3]), GroupInput([], "a blue car", EDITS[:3]))
        assert [type(score) for group in result.groups for score in group] == [Score] * 6
        assert all(candidate.sources == () for candidate in backend.seen)
        assert result.images == 3

    run(main())


def test_a_number_of_sources_that_is_not_taken_is_refused_before_anything_is_read() -> None:
    async def main() -> None:
        bad = ImageInput.of("source", b"no image")
        for most, sources, wanted in (
            (0, [bad], "takes no source image, got 1"),
            (1, [], "takes one source image, got none"),
            (1, [bad, bad], "takes one source image, got 2"),
            (3, [], "takes 1 to 3 source images, got none"),
            (3, [bad] * 10_000, "takes 1 to 3 source images, got 10000"),
        ):
            async with service(FakeBackend(), preparer=FakePreparer(max_sources=most)) as made:
                fine = GroupInput([SOURCE] * min(most, 1), "x", EDITS[:1], "groups[0]")
                for groups, param in (
                    ([fine, GroupInput(sources, "x", EDITS[:2], "groups[1]")], "groups[1].source"),
                    ([GroupInput(sources, "x", EDITS[:1])], "source"),
                ):
                    with pytest.raises(InvalidRequest) as refused:
                        await ask(made, *groups)
                    assert str(refused.value) == f"{param}: the checkpoint 'fake' {wanted}"
                    assert refused.value.param == param

    run(main())


def test_a_bad_source_among_several_fails_its_group_by_name() -> None:
    async def main() -> None:
        bad = ImageInput.of("source[1]", b"no image")
        async with service(FakeBackend(), preparer=FakePreparer(max_sources=3)) as made:
            sources = [source(1, "source[0]"), bad, source(2, "source[2]")]
            result = await ask(made, GroupInput(sources, "x", EDITS[:2]), GroupInput(sources[:1], "x", EDITS[:2]))
        failed, fine = result.groups
        assert [(type(error), error.param) for error in failed] == [(InvalidImage, "source[1]")] * 2
        assert str(failed[0]).startswith("source[1]: ")
        assert [type(score) for score in fine] == [Score] * 2

    run(main())


def test_with_memory_for_one_image_candidates_of_many_are_scored_all_the_same() -> None:
    async def main() -> None:
        async with service(FakeBackend(), max_prepared_bytes=1, preparer=FakePreparer(max_sources=3)) as made:
            result = await ask(made, GroupInput([source(1), source(2), source(3)], "x", EDITS))
        assert [type(score) for score in result.groups[0]] == [Score] * 8

    run(main())


def test_a_bad_image_fails_its_candidates_and_no_other() -> None:
    async def main() -> None:
        bad = ImageInput.of("edits[1]", b"no image")
        async with service(FakeBackend()) as made:
            fine = await ask(made, GroupInput([SOURCE], "x", [EDITS[0], bad]))
            failed = await ask(made, GroupInput([ImageInput.of("source", b"no image")], "x", EDITS[:2]))
        assert [type(result) for result in fine.groups[0]] == [Score, InvalidImage]
        assert str(fine.groups[0][1]).startswith("edits[1]: ")
        assert [type(result) for result in failed.groups[0]] == [InvalidImage] * 2
        assert str(failed.groups[0][0]).startswith("source: ")

    run(main())


def test_a_server_that_stops_leaves_nobody_waiting() -> None:
    async def main() -> None:
        slow = SlowBackend(FakeBackend(), gated=True)
        async with service(slow, max_queue=8) as made:
            requests = [asyncio.create_task(ask(made, GROUP)) for _ in range(2)]
            await entered(slow)
            drained = asyncio.create_task(made.drain())
            await until(lambda: made.line.waiting == 8)
            assert not drained.done()
            made.abandon()
            results = await asyncio.gather(*requests, ask(made, GROUP), return_exceptions=True)
            assert [(type(result), str(result)) for result in results] == [(Draining, "the server stops")] * 3
            await drained
            slow.open()

    run(main())
