"""Recording happens beside the scoring: bounded, and never anybody's failure."""

import asyncio
import json
import logging
import threading
import tracemalloc

import pytest
from prometheus_client import CollectorRegistry

from jrm_service.api.access_log import RequestRecord
from jrm_service.api.keys import Key
from jrm_service.api.watch.groups import ScoredGroup
from jrm_service.api.watch.recorder import MAX_READERS, Allowance, Recorder
from jrm_service.api.watch.store import RecentGroups
from jrm_service.api.watch.window import Window
from jrm_service.errors import InvalidImage, Overloaded
from jrm_service.images.reader import ImageInput
from jrm_service.metrics import Metrics
from jrm_service.scoring.service import GroupInput, ScoreResult
from jrm_service.scoring.types import Dimension, Score, ServedModel
from support.cases import each
from support.pictures import encode, photo

MODEL = ServedModel("fake", "f" * 32, {})
SMALL = ImageInput.of("source", encode(photo(32, 32)))
LARGE = [ImageInput.of(f"edits[{n}]", encode(photo(600, 400, seed=n))) for n in range(3)]


def score(reward: float) -> Score:
    return Score(reward, 0.5, {"quality": Dimension(reward, 0.5)})


def result(*groups) -> ScoreResult:
    return ScoreResult([list(group) for group in groups], [[False] * len(group) for group in groups], 0, 0, 0, 0, 0, 0)


def make(*, max_groups: int = 10, max_bytes: int = 10_000_000, clock=None) -> Recorder:
    window = Window() if clock is None else Window(clock)
    store = RecentGroups(max_groups, max_bytes)
    return Recorder(store, window, Metrics(CollectorRegistry()), max_waiting_bytes=max_bytes)


def counted(recorder: Recorder) -> dict[str, float]:
    [family] = recorder._metrics.watch_groups.collect()
    return {one.labels["outcome"]: one.value for one in family.samples if one.name.endswith("_total") and one.value}


def offer(
    recorder: Recorder,
    edits=(SMALL, SMALL),
    outcomes=None,
    record=None,
    *,
    sources=(SMALL,),
    instruction="make it blue",
) -> None:
    outcomes = [score(float(n)) for n, _ in enumerate(edits)] if outcomes is None else outcomes
    group = GroupInput(list(sources), instruction, list(edits))
    recorder.offer([group], result(outcomes), model=MODEL, record=record or RequestRecord("req-1"))


async def recorded(recorder: Recorder) -> None:
    """Run until everything that was offered is recorded."""
    running = asyncio.create_task(recorder.run())
    await recorder.settled()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    recorder.stop()


def test_who_asked_and_what_they_got():
    record = RequestRecord("req-7", key=Key("alice", b""), wire="unirl")
    group = GroupInput([SMALL], "x" * 3000, [SMALL, *LARGE])
    outcomes = [InvalidImage("edits[0]: secret"), score(1.0), score(3.0), score(1.0)]
    scored = ScoredGroup.of(
        group, outcomes, time=5.0, request_id=record.request_id, key="alice", wire=record.wire, model=MODEL
    )
    assert (scored.best, scored.worst) == (2, 3)  # of equal ones the first is the best and the last the worst
    assert scored.images == [SMALL, LARGE[1], LARGE[2]]
    event = json.loads(scored.event([SMALL.key.hex(), LARGE[2].key.hex()]))
    assert event["instruction"] == "x" * 2000
    assert event["instruction_cut"] is True
    assert event["scores"][0] == {"index": 0, "status": "error", "error": {"code": "invalid_image"}}
    assert event["scores"][2]["dimensions"] == {"quality": {"mean": 3.0, "std": 0.5}}
    assert event["pictures"] == {"sources": [SMALL.key.hex()], "best": None, "worst": LARGE[2].key.hex()}


def test_edge_cases_of_best_and_worst():
    def chosen(*outcomes):
        group = GroupInput([], "x", [SMALL] * len(outcomes))
        made = ScoredGroup.of(group, outcomes, time=0.0, request_id="", key=None, wire="", model=MODEL)
        return made.best, made.worst

    error = InvalidImage("no")
    assert chosen(error, error) == (None, None)
    assert chosen(error, score(1.0)) == (1, None)
    assert chosen(score(1.0), score(1.0), score(1.0)) == (0, 2)
    assert chosen(score(-1.0), score(-2.0), error) == (0, 1)


def test_what_is_offered_is_kept_in_order_with_its_pictures():
    recorder = make(max_groups=3)
    for number in range(5):
        offer(recorder, LARGE, record=RequestRecord(f"req-{number}"))
    asyncio.run(recorded(recorder))
    after, seen = 0, []
    while (group := recorder.store.after(after)) is not None:
        after = group.number
        event = json.loads(group.event)
        seen.append(event["request_id"])
        for name in (*event["pictures"]["sources"], event["pictures"]["best"], event["pictures"]["worst"]):
            assert recorder.store.picture(name) is not None
    assert seen == ["req-2", "req-3", "req-4"]
    assert recorder.window.groups == 5
    assert counted(recorder) == {"kept": 5}


def test_what_goes_wrong_is_logged_once_and_counted_and_nobodys_failure(caplog):
    def clock() -> float:
        raise RuntimeError("broken")

    recorder = make(clock=clock)
    for _ in range(3):
        offer(recorder)
    with caplog.at_level(logging.ERROR):
        asyncio.run(recorded(recorder))
    assert counted(recorder) == {"failed": 3}
    [line] = caplog.records
    assert "broken" in caplog.text
    assert "blue" not in line.getMessage()


def test_the_event_loop_counts_and_summarizes_nothing():
    """Both take milliseconds, in which nobody is answered."""
    used = set()

    def clock() -> float:
        used.add(threading.current_thread())
        return 0.0

    async def run(recorder: Recorder) -> None:
        running = asyncio.create_task(recorder.run())
        await recorder.settled()
        moved = await recorder.window_event()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        recorder.stop()
        assert json.loads(moved.json) == moved.document
        assert (moved.groups, moved.document["now"]["groups"]) == (1, 1)

    recorder = make(clock=clock)
    offer(recorder)
    asyncio.run(run(recorder))
    assert len(used) == 1
    assert threading.main_thread() not in used


def test_an_offer_that_makes_no_sense_raises_nothing(caplog):
    recorder = make()
    recorder.offer([], result([score(1.0)]), model=MODEL, record=RequestRecord("x"))
    assert counted(recorder) == {"failed": 1}
    recorder.stop()


def test_while_the_thread_is_behind_few_groups_wait(caplog):
    recorder = make(max_bytes=20_000_000)
    for _ in range(1030):
        offer(recorder)
    assert len(recorder._waiting) == 1024
    assert counted(recorder) == {"failed": 6}
    assert "too many groups wait" in caplog.text
    asyncio.run(recorded(recorder))
    assert counted(recorder) == {"failed": 6, "kept": 1024}
    assert recorder._waiting_bytes == 0


def raised() -> InvalidImage:
    """As one is that has come through functions which had an image in hand."""
    data = bytes(500_000)
    try:
        raise InvalidImage(f"no image in {len(data)} bytes")
    except InvalidImage as error:
        return error


@each(
    "options",
    [
        {"sources": [ImageInput.of("source", b"")], "edits": ["fresh", "fresh"]},
        {"sources": ["fresh"] * 3},
        {"instruction": "x" * 100_000},
        {"instruction": "\N{PARTY POPPER}" * 2000},
        {"edits": [SMALL] * 2000},
        {"sources": [ImageInput.of("source", b"")] * 500},
        {"outcomes": "raised"},
    ],
    ids=["edits", "sources", "long instruction", "wide instruction", "outcomes", "many images", "errors"],
)
def test_while_the_thread_is_behind_little_memory_is_held(options):
    most = 2_000_000
    recorder = make(max_bytes=most)

    def filled(images) -> list[ImageInput]:
        return [ImageInput.of("x", bytes(500_000)) if image == "fresh" else image for image in images]

    tracemalloc.start()
    try:
        for _ in range(200):
            if counted(recorder).get("failed", 0) == 20:
                break
            made = {name: filled(value) if name in ("sources", "edits") else value for name, value in options.items()}
            if options.get("outcomes") == "raised":
                made["outcomes"] = [raised(), raised()]
            offer(recorder, **made)
            del made
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert recorder._waiting
    assert held < 1.2 * most
    recorder.stop()


def test_groups_whose_pictures_are_left_out_still_count():
    recorder = make(max_bytes=5000)
    offer(recorder, LARGE[:2])
    asyncio.run(recorded(recorder))
    assert counted(recorder) == {"without_pictures": 1}
    assert recorder.window.groups == 1
    event = json.loads(recorder.store.after(0).event)
    assert event["scores"][1]["reward"] == 1.0
    assert event["pictures"] == {"sources": [None], "best": None, "worst": None}


def test_thumbnails_take_their_share_of_time_and_no_more():
    now = 0.0
    allowance = Allowance(0.2, 5.0, lambda: now)
    allowance.spend(6.0)
    assert allowance.left() == -1.0
    now = 10.0
    assert allowance.left() == pytest.approx(1.0)
    now = 1000.0
    assert allowance.left() == 5.0


def test_without_allowance_what_is_small_is_shown_and_nothing_decoded():
    recorder = make()
    recorder._allowance.spend(1000.0)
    offer(recorder, [SMALL, LARGE[0]])
    asyncio.run(recorded(recorder))
    event = json.loads(recorder.store.after(0).event)
    assert event["pictures"] == {"sources": [SMALL.key.hex()], "best": None, "worst": SMALL.key.hex()}
    assert counted(recorder) == {"without_pictures": 1}


def test_readers_are_few_and_are_told_of_everything():
    recorder = make()
    with recorder.reader() as first:
        others = [recorder.reader() for _ in range(MAX_READERS - 1)]
        for other in others:
            other.__enter__()
        with pytest.raises(Overloaded) as refused, recorder.reader():
            pass
        assert refused.value.retry_after is not None
        others[0].__exit__(None, None, None)
        with recorder.reader():
            assert not first.is_set()
            offer(recorder)
            asyncio.run(recorded(recorder))
            assert first.is_set()


def test_nothing_is_recorded_after_the_end():
    recorder = make()
    recorder.close()
    offer(recorder)
    assert not recorder._waiting
    recorder.stop()
