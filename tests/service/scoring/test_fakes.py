"""The fakes that users' tests build on."""

from __future__ import annotations

import math
import threading

import pytest
from PIL import Image as PILImage

from jrm_service.errors import ImageTooLarge, InstructionTooLong
from jrm_service.scoring.backend import Backend, Preparer, WorkerLost
from jrm_service.scoring.fakes import (
    FakeBackend,
    FakeBatch,
    FakePreparer,
    NaNBackend,
    RaisingBackend,
    RecordingBackend,
    SlowBackend,
    fake_score,
)
from jrm_service.scoring.types import Candidate, Image, Score
from service.scoring.support import candidate


def rgb(colour: str = "red", size: tuple[int, int] = (64, 48)) -> PILImage.Image:
    return PILImage.new("RGB", size, colour)


def prepared(instruction: str = "make it blue", edited: str = "blue") -> Candidate:
    preparer: Preparer = FakePreparer()
    return preparer.candidate([preparer.image(rgb())], preparer.image(rgb(edited)), instruction)


def test_equal_images_have_equal_keys_and_others_do_not() -> None:
    preparer = FakePreparer()
    changed = rgb(size=(3000, 2000))
    changed.putpixel((2999, 1999), (254, 0, 0))
    keys = [preparer.image(one).key for one in (rgb(size=(3000, 2000)), rgb(size=(3000, 2000)), changed)]
    assert keys[0] == keys[1] != keys[2]
    assert preparer.image(rgb(size=(2, 8))).key != preparer.image(rgb(size=(8, 2))).key


@pytest.mark.parametrize(("size", "tokens"), [((1, 1), 1), ((64, 48), 4), ((448, 448), 196), ((4000, 4000), 196)])
def test_an_image_is_a_token_per_32_pixels_and_a_thumbnail_in_memory(size: tuple[int, int], tokens: int) -> None:
    image = FakePreparer().image(rgb(size=size))
    assert image.tokens == tokens
    assert image.pixels.shape[2] == 3
    assert max(image.pixels.shape) <= 64


@pytest.mark.parametrize(("size", "fits"), [((200, 1), True), ((201, 1), False), ((1, 201), False)])
def test_an_extreme_aspect_ratio_is_too_large(size: tuple[int, int], fits: bool) -> None:
    if fits:
        assert FakePreparer().image(rgb(size=size)).tokens >= 1
    else:
        with pytest.raises(ImageTooLarge):
            FakePreparer().image(rgb(size=size))


def test_a_candidate_has_two_passes_of_plausible_length() -> None:
    one = prepared()
    assert len(one.sequences) == 2
    assert 300 < one.sequences[0].tokens < 1000
    assert one.sequences[0] != one.sequences[1]
    with pytest.raises(InstructionTooLong, match="at most 500"):
        FakePreparer(max_tokens=500).candidate(one.sources, one.edited, "word " * 200)


def test_any_number_of_sources() -> None:
    images = [FakePreparer().image(rgb(colour)) for colour in ("red", "green", "blue")]
    scores = []
    for most, count in ((0, 0), (1, 1), (3, 1), (3, 3)):
        one = FakePreparer(max_sources=most).candidate(images[:count], images[0], "x")
        assert one.sources == tuple(images[:count])
        assert [s for s in one.sequences[0].segments if isinstance(s, Image)] == [*images[:count], images[0]]
        scores.append(fake_score(one).reward)
    assert len(set(scores)) == 3
    for most, count in ((0, 1), (1, 0), (1, 2), (3, 0), (3, 4)):
        with pytest.raises(ValueError, match="source image"):
            FakePreparer(max_sources=most).candidate([images[0]] * count, images[0], "x")


def test_scores_follow_from_the_content_alone() -> None:
    assert fake_score(prepared()) == fake_score(prepared())
    others = [prepared("another"), prepared(edited="green"), prepared("make it blue ")]
    assert len({fake_score(one).reward for one in [prepared(), *others]}) == 4


def test_scores_look_like_scores() -> None:
    backend: Backend[FakeBatch] = FakeBackend()
    batch = backend.collate([prepared(str(number)) for number in range(50)])
    scored = backend.score(batch)
    assert scored.tokens_computed == sum(one.tokens for one in batch)
    for score in scored.outcomes:
        assert isinstance(score, Score)
        assert score.finite
        means = [dimension.mean for dimension in score.dimensions.values()]
        stds = [dimension.std or 0.0 for dimension in score.dimensions.values()]
        assert list(score.dimensions) == ["instruction_following", "visual_quality"]
        assert score.reward == pytest.approx(sum(means) / 2)
        assert score.reward_std == pytest.approx(math.hypot(*stds) / 2)
        assert all(-2 <= mean < 2 for mean in means)
        assert all(0.05 <= std < 0.55 for std in stds)


def test_the_numbers_never_change() -> None:
    score = fake_score(candidate_of_fixed_keys())
    assert score.reward == pytest.approx(1.4529017, abs=1e-6)


def candidate_of_fixed_keys() -> Candidate:
    preparer = FakePreparer()
    return preparer.candidate([preparer.image(rgb("red"))], preparer.image(rgb("blue")), "make the car red")


def test_a_raising_backend_raises_for_the_chosen_only() -> None:
    backend = RaisingBackend(
        FakeBackend(), when=lambda one: one.instruction == "boom", error=lambda: WorkerLost("gone")
    )
    good, bad = candidate(), candidate(instruction="boom")
    assert backend.score((good,)).outcomes == [fake_score(good)]
    with pytest.raises(WorkerLost, match="gone"):
        backend.score((good, bad))
    with pytest.raises(RuntimeError):
        RaisingBackend(FakeBackend()).score((good,))


def test_a_nan_backend_spoils_the_chosen_only() -> None:
    good, bad = candidate(), candidate(instruction="boom")
    first, second = NaNBackend(FakeBackend(), when=lambda one: one is bad).score((good, bad)).outcomes
    assert first == fake_score(good)
    assert isinstance(second, Score)
    assert math.isnan(second.reward)
    assert not second.finite


def test_a_gated_backend_lets_through_as_many_as_it_is_told() -> None:
    slow = SlowBackend(FakeBackend(), gated=True)
    done = threading.Semaphore(0)

    def device() -> None:
        slow.score((candidate(),))
        done.release()

    threads = [threading.Thread(target=device) for _ in range(5)]
    for thread in threads:
        thread.start()
    slow.wait_entered(5)
    slow.let_through(2)
    assert done.acquire(timeout=30)
    assert done.acquire(timeout=30)
    assert not done.acquire(blocking=False)
    slow.open()
    for thread in threads:
        thread.join()
    slow.score((candidate(),))


def test_waiting_for_a_batch_that_does_not_come_is_an_error() -> None:
    with pytest.raises(TimeoutError, match="no batch came"):
        SlowBackend(FakeBackend(), gated=True).wait_entered(timeout_s=0.0)


def test_a_slow_backend_without_a_gate_passes_everything() -> None:
    one = candidate()
    assert SlowBackend(FakeBackend(), seconds=0.001).score((one,)).outcomes == [fake_score(one)]


def test_a_recording_backend_remembers_what_was_collated_and_what_ran() -> None:
    recording = RecordingBackend(RaisingBackend(FakeBackend("cuda:7")))
    one = candidate()
    batch = recording.collate([one])
    assert (recording.collated, recording.batches) == ([(one,)], [])
    with pytest.raises(RuntimeError):
        recording.score(batch)
    assert recording.seen == [one]
    assert recording.device == "cuda:7"
