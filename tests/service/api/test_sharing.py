"""Many callers, one queue, over real sockets: shared batches, and what happens to the work of callers who leave."""

import asyncio
import base64
import contextlib
import json
import signal
import threading

import httpx
import pytest

from jrm_service.model.checkpoint_source import open_source
from jrm_service.scoring.backend import OutOfMemory, WorkerLost
from jrm_service.scoring.fakes import FakeBackend, FakePreparer, RaisingBackend, RecordingBackend, SlowBackend
from jrm_service.settings import Settings
from support import servers
from support.pictures import encode, photo
from support.servers import Metric, error_of

SOURCE = encode(photo(48, 48))
EDITS = [encode(photo(48, 48, seed=n + 1)) for n in range(64)]


def as_json(instruction: str, edit: bytes = EDITS[0], **more) -> dict:
    body = {"source": SOURCE, "edited": edit}
    return {"json": {k: base64.b64encode(v).decode() for k, v in body.items()} | {"instruction": instruction} | more}


def as_form(instruction: str, edit: bytes = EDITS[0], **more) -> dict:
    fields = {"instruction": instruction} | {name: str(value) for name, value in more.items()}
    return {"files": {"source": ("s", SOURCE), "edited": ("e", edit)}, "data": fields}


def as_sdk_form(instruction: str, edit: bytes = EDITS[0], **more) -> dict:
    request = {"source": "part:s", "edited": "part:e", "instruction": instruction} | more
    return {"files": {"request": (None, json.dumps(request)), "s": ("s", SOURCE), "e": ("e", edit)}}


FORMS = {"JSON": as_json, "form": as_form, "SDK form": as_sdk_form}


class GatedPreparer(FakePreparer):
    """Stops at the instruction ``stop`` or in front of every image until the test lets it go on."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Semaphore(0)
        self.gate = threading.Event()

    def image(self, rgb):
        self.entered.release()
        assert self.gate.wait(30)
        return super().image(rgb)


async def until(condition) -> None:
    """Wait for something that another thread brings about."""
    async with asyncio.timeout(30):
        while not await asyncio.to_thread(condition):  # noqa: ASYNC110 - metrics have no event to wait for
            await asyncio.sleep(0.005)


def outcomes(url: str, outcome: str) -> float:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    prefix = f'jrm_candidates_total{{outcome="{outcome}"}} '
    return sum(float(line.removeprefix(prefix)) for line in lines if line.startswith(prefix))


# --- the event loop --------------------------------------------------------------------------------------------------


def test_the_server_answers_while_it_decodes_and_while_it_scores():
    preparer, slow = GatedPreparer(), SlowBackend(FakeBackend(), gated=True)
    with servers.serving(load=lambda: servers.fake_parts(slow, preparer=preparer)) as url:

        async def run() -> None:
            async with httpx.AsyncClient(base_url=url, timeout=30) as client:
                scoring = asyncio.create_task(client.post("/v1/score", **as_json("x")))
                assert await asyncio.to_thread(preparer.entered.acquire)
                assert (await client.get("/health/live")).status_code == 200
                preparer.gate.set()
                await asyncio.to_thread(slow.wait_entered)
                assert (await client.get("/health/live")).status_code == 200
                slow.open()
                assert (await scoring).status_code == 200

        asyncio.run(run())


# --- batches ---------------------------------------------------------------------------------------------------------


class GatedScorer:
    """A real backend that begins when the test says so."""

    def __init__(self, inner) -> None:
        self._inner = inner
        self.device = inner.device
        self.gate = threading.Event()

    def collate(self, candidates):
        return self._inner.collate(candidates)

    def score(self, batch):
        assert self.gate.wait(60)
        return self._inner.score(batch)


def test_64_callers_share_batches_and_get_their_own_scores(tiny_checkpoint):
    source = open_source(tiny_checkpoint, ["cpu"], "auto", "trie", self_test=False)
    model, (scorer,) = source.load()
    gated = GatedScorer(scorer)
    parts = servers.Parts(model, source.preparer, [gated], source.cost)
    with servers.serving(Settings(cache_entries=0), load=lambda: parts) as url:
        metric = Metric(url)

        async def run() -> None:
            limits = httpx.Limits(max_connections=64)
            async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:

                async def reward(edit: bytes) -> float:
                    reply = (await client.post("/v1/score", **as_form("make it blue", edit))).json()
                    return reply["groups"][0]["scores"][0]["reward"]

                asking = asyncio.gather(*map(reward, EDITS))
                await until(lambda: metric("jrm_preprocess_seconds_count") == 64)
                gated.gate.set()
                together = await asking
                assert metric("jrm_batch_candidates_sum") == 64
                assert metric("jrm_batch_candidates_count") < 8
                alone = [await reward(edit) for edit in EDITS]
                assert together == pytest.approx(alone, abs=1e-4)
                assert len(set(alone)) == 64

        asyncio.run(run())


# --- callers who leave -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_a_caller_who_leaves_before_preprocessing_never_reaches_the_backend(form):
    preparer, recording = GatedPreparer(), RecordingBackend(FakeBackend())
    with servers.serving(load=lambda: servers.fake_parts(recording, preparer=preparer)) as url:

        async def run() -> None:
            async with httpx.AsyncClient(base_url=url, timeout=30) as client:
                leaving = asyncio.create_task(client.post("/v1/score", **FORMS[form]("leaving")))
                assert await asyncio.to_thread(preparer.entered.acquire)
                leaving.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await leaving
            await until(lambda: outcomes(url, "cancelled") == 1)
            preparer.gate.set()
            async with httpx.AsyncClient(base_url=url, timeout=30) as client:
                assert (await client.post("/v1/score", **FORMS[form]("staying"))).status_code == 200

        asyncio.run(run())
        assert {candidate.instruction for batch in recording.collated for candidate in batch} == {"staying"}


@pytest.mark.parametrize("form", FORMS)
def test_a_caller_who_leaves_the_queue_never_reaches_the_backend(form):
    slow = SlowBackend(FakeBackend(), gated=True)
    recording = RecordingBackend(slow)
    with servers.serving(load=lambda: servers.fake_parts(recording)) as url:

        async def run() -> None:
            async with httpx.AsyncClient(base_url=url, timeout=30) as client:
                first = asyncio.create_task(client.post("/v1/score", **FORMS[form]("first")))
                await asyncio.to_thread(slow.wait_entered)
                async with httpx.AsyncClient(base_url=url, timeout=30) as other:
                    leaving = asyncio.create_task(other.post("/v1/score", **FORMS[form]("leaving")))
                    await until(lambda: Metric(url)("jrm_queue_depth") == 2)
                    await until(lambda: Metric(url)("jrm_preprocess_seconds_count") == 2)
                    leaving.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await leaving
                await until(lambda: outcomes(url, "cancelled") == 1)
                slow.open()
                assert (await first).status_code == 200
                assert (await client.post("/v1/score", **FORMS[form]("last"))).status_code == 200

        asyncio.run(run())
        assert [candidate.instruction for candidate in recording.seen] == ["first", "last"]


@pytest.mark.parametrize("form", FORMS)
def test_time_that_is_up_is_an_error_and_the_work_is_dropped(form):
    slow = SlowBackend(FakeBackend(), gated=True)
    recording = RecordingBackend(slow)
    with servers.serving(load=lambda: servers.fake_parts(recording)) as url:

        async def run() -> None:
            async with httpx.AsyncClient(base_url=url, timeout=30) as client:
                first = asyncio.create_task(client.post("/v1/score", **FORMS[form]("first")))
                await asyncio.to_thread(slow.wait_entered)
                late = await client.post("/v1/score", **FORMS[form]("late", timeout_ms=50))
                assert error_of(late) == (504, "deadline_exceeded")
                assert late.json()["groups"][0]["scores"][0]["error"]["code"] == "deadline_exceeded"
                slow.open()
                assert (await first).status_code == 200

        asyncio.run(run())
        assert [candidate.instruction for candidate in recording.seen] == ["first"]


def test_a_backend_that_hangs_costs_a_caller_its_timeout_and_no_more():
    slow = SlowBackend(FakeBackend(), gated=True)
    with servers.serving(load=lambda: servers.fake_parts(slow)) as url:
        assert error_of(httpx.post(f"{url}/v1/score", **as_json("x", timeout_ms=100))) == (504, "deadline_exceeded")
        slow.open()
        assert httpx.post(f"{url}/v1/score", **as_json("x")).status_code == 200


# --- overload --------------------------------------------------------------------------------------------------------


def test_a_request_that_would_wait_past_its_deadline_is_refused_and_says_when_to_come_back():
    slow = SlowBackend(FakeBackend(), seconds_per_candidate=0.05)
    settings = Settings(backend="fake", max_queue=16, max_candidates=16, cache_entries=0)
    with servers.serving(settings, load=lambda: servers.fake_parts(slow)) as url:
        group = {"source": base64.b64encode(SOURCE).decode(), "instruction": "x"}
        edits = [base64.b64encode(edit).decode() for edit in EDITS[:12]]

        async def run() -> None:
            async with httpx.AsyncClient(base_url=url, timeout=30) as client:

                def ask(**headers: str) -> asyncio.Task[httpx.Response]:
                    twelve = {"groups": [group | {"edits": edits}]}
                    return asyncio.create_task(client.post("/v1/score", json=twelve, headers=headers))

                assert (await ask()).status_code == 200
                running, waiting = ask(), ask()
                await until(lambda: Metric(url)("jrm_queue_depth") == 12)
                refused = await ask(**{"x-jrm-timeout-ms": "1"})
                assert error_of(refused) == (429, "overloaded")
                assert refused.json()["error"]["type"] == "rate_limit_error"
                assert int(refused.headers["retry-after"]) >= 1
                patient = ask()
                replies = await asyncio.gather(running, waiting, patient)
                assert [reply.status_code for reply in replies] == [200] * 3

        asyncio.run(run())


def test_a_deadline_holds_while_preprocessing_is_stuck():
    preparer, recording = GatedPreparer(), RecordingBackend(FakeBackend())
    with servers.serving(load=lambda: servers.fake_parts(recording, preparer=preparer)) as url:
        try:
            late = httpx.post(f"{url}/v1/score", **as_json("late", timeout_ms=50))
            assert error_of(late) == (504, "deadline_exceeded")
        finally:
            preparer.gate.set()
        assert httpx.post(f"{url}/v1/score", **as_json("next")).status_code == 200
    assert [candidate.instruction for candidate in recording.seen] == ["next"]


# --- workers ---------------------------------------------------------------------------------------------------------


def dying(deaths: int) -> list[RaisingBackend]:
    """Two workers, of which the first ``deaths`` runs end in a lost device, whoever gets them."""
    left = iter(range(deaths))
    return [
        RaisingBackend(FakeBackend(name), when=lambda _: next(left, None) is not None, error=lambda: WorkerLost("gone"))
        for name in ("gpu-a", "gpu-b")
    ]


def test_a_worker_that_dies_takes_nothing_with_it():
    with servers.serving(load=lambda: servers.fake_parts(*dying(1))) as url:
        assert httpx.post(f"{url}/v1/score", **as_json("x")).status_code == 200
        assert httpx.get(f"{url}/health/ready").json() == {"status": "ready", "parts": {"score": "degraded"}}
        metric = Metric(url)
        assert (metric("jrm_workers"), metric("jrm_workers_alive")) == (2, 1)
        assert metric("jrm_worker_failures_total") == 1
        assert httpx.post(f"{url}/v1/score", **as_json("y")).status_code == 200


def test_while_no_worker_is_alive_new_requests_are_refused_and_those_within_keep_their_deadline():
    with servers.serving(load=lambda: servers.fake_parts(*dying(2))) as url:
        reply = httpx.post(f"{url}/v1/score", **as_json("x", timeout_ms=1000))
        assert error_of(reply) == (504, "deadline_exceeded")
        assert error_of(httpx.get(f"{url}/health/ready")) == (503, "not_ready")
        assert httpx.get(f"{url}/health/startup").status_code == 200
        assert error_of(httpx.post(f"{url}/v1/score", **as_json("y"))) == (503, "not_ready")
        assert httpx.get(f"{url}/health/live").status_code == 200


def killing(instruction: str) -> RaisingBackend:
    """A device that is lost with every batch in which this instruction is."""
    return RaisingBackend(FakeBackend(), when=lambda one: one.instruction == instruction, error=lambda: WorkerLost("x"))


def test_a_candidate_that_kills_its_devices_is_device_lost_and_its_neighbours_have_scores():
    parts = lambda: servers.fake_parts(*(killing("poison") for _ in range(4)))  # noqa: E731
    with servers.serving(load=parts) as url:
        image, edits = base64.b64encode(SOURCE).decode(), [base64.b64encode(edit).decode() for edit in EDITS[:6]]
        poison = {"source": image, "instruction": "poison", "edits": edits[:1]}
        fine = {"source": image, "instruction": "fine", "edits": edits}
        reply = httpx.post(f"{url}/v1/score", json={"groups": [poison, fine]})
        assert reply.status_code == 200
        first, others = (group["scores"] for group in reply.json()["groups"])
        assert first[0]["error"]["code"] == "device_lost"
        assert [score["status"] for score in others] == ["ok"] * 6
        assert outcomes(url, "device_lost") == 1
        assert Metric(url)("jrm_workers_alive") == 1


def test_a_request_of_which_nothing_but_device_lost_is_left_is_503():
    with servers.serving(load=lambda: servers.fake_parts(*(killing("poison") for _ in range(4)))) as url:
        reply = httpx.post(f"{url}/v1/score", **as_json("poison"))
        assert error_of(reply) == (503, "device_lost")
        assert int(reply.headers["retry-after"]) >= 1
        assert reply.json()["groups"][0]["scores"][0]["error"]["code"] == "device_lost"


def test_a_bad_candidate_touches_nobody_elses_score():
    """The backend raises for one of twelve: eleven scores and one error, each equal to what it is alone."""
    backend = RaisingBackend(FakeBackend(), when=lambda candidate: candidate.instruction == "boom")
    with servers.serving(Settings(cache_entries=0), load=lambda: servers.fake_parts(backend)) as url:
        image, edits = base64.b64encode(SOURCE).decode(), [base64.b64encode(edit).decode() for edit in EDITS[:11]]
        good = {"source": image, "instruction": "fine", "edits": edits}
        bad = {"source": image, "instruction": "boom", "edits": edits[:1]}
        together = httpx.post(f"{url}/v1/score", json={"groups": [good, bad]}).json()["groups"]
        alone = httpx.post(f"{url}/v1/score", json={"groups": [good]}).json()["groups"]
        assert together[0] == alone[0]
        assert together[1]["scores"][0]["error"]["code"] == "internal"


def test_memory_that_others_hold_for_a_while_is_a_reason_to_come_back():
    """The device itself is fine, and so is the candidate: the SDK has its score once the neighbour has left."""
    crowded = threading.Event()
    crowded.set()
    backend = RaisingBackend(FakeBackend(), when=lambda _: crowded.is_set(), error=lambda: OutOfMemory("taken"))
    with servers.serving(load=lambda: servers.fake_parts(backend)) as url:
        refused = httpx.post(f"{url}/v1/score", **as_json("x"))
        assert error_of(refused) == (503, "not_ready")
        assert int(refused.headers["retry-after"]) == 5
        assert httpx.get(f"{url}/health/ready").status_code == 200
        crowded.clear()
        assert httpx.post(f"{url}/v1/score", **as_json("x")).status_code == 200


# --- shutdown --------------------------------------------------------------------------------------------------------


def test_a_draining_server_finishes_its_work_and_says_that_it_takes_no_more():
    slow = SlowBackend(FakeBackend(), gated=True)
    with servers.starting(load=lambda: servers.fake_parts(slow), expose=(running := [])) as url:

        async def run() -> None:
            async with httpx.AsyncClient(base_url=url, timeout=30) as client:
                await until(lambda: httpx.get(f"{url}/health/ready").status_code == 200)
                first = asyncio.create_task(client.post("/v1/score", **as_json("first")))
                await asyncio.to_thread(slow.wait_entered)
                running[0].handle_exit(signal.SIGTERM, None)
                await until(lambda: httpx.get(f"{url}/health/ready").status_code == 503)
                assert error_of(await client.get("/health/ready")) == (503, "draining")
                assert (await client.get("/health/startup")).status_code == 200
                refused = await client.post("/v1/score", **as_json("second"))
                assert error_of(refused) == (503, "draining")
                assert int(refused.headers["retry-after"]) >= 1
                assert (await client.get("/health/live")).status_code == 200
                slow.open()
                assert (await first).status_code == 200

        asyncio.run(run())
        running[0].thread.join(30)
        assert not running[0].thread.is_alive()
