"""``GET /v1/watch`` of real servers: what is told of what was scored, to whom, and until when."""

import asyncio
import base64
import logging
import signal
import socket
import time
import uuid
from contextlib import ExitStack

import httpx
import pytest
from fastapi import FastAPI

from jrm_client import AsyncJRMClient, JRMClient
from jrm_service.api.keys import Key, Scopes, digest
from jrm_service.api.watch.recorder import MAX_READERS
from jrm_service.api.watch.routes import watch_router
from jrm_service.errors import InternalError
from jrm_service.scoring.fakes import FakeBackend, FakePreparer, NaNBackend
from jrm_service.settings import Settings
from support import servers, wire_bodies
from support.cases import each
from support.pictures import encode, photo
from support.servers import Metric, error_of
from support.watching import groups, watching
from support.wire_bodies import Pair

SOURCE, *EDITS = (encode(photo(40, 40, seed=n)) for n in range(5))
ALICE, VIEWER = "jrm_alice-secret", "jrm_viewer-secret"


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def request(*edits: bytes, instruction: str = "make it blue", sources=(SOURCE,)) -> dict:
    group = {"instruction": instruction, "edits": [b64(edit) for edit in edits]}
    return {"groups": [group | ({"source": [b64(source) for source in sources]} if sources else {})]}


def many_groups(count: int = 100, *, length: int = 2000) -> dict:
    """A request of so many groups of one edit; events write each é of their instructions with six characters."""
    group = {"instruction": "é" * length, "source": [b64(SOURCE)], "edits": [b64(EDITS[0])]}
    return {"groups": [group] * count}


def post(url: str, *edits: bytes, secret: str | None = None, name: str = "", **options) -> httpx.Response:
    headers = {"authorization": f"Bearer {secret}"} if secret else {}
    headers |= {"x-request-id": name} if name else {}
    return httpx.post(f"{url}/v1/score", json=request(*edits, **options), headers=headers, timeout=60)


def picture(url: str, name: str) -> httpx.Response:
    return httpx.get(f"{url}/v1/watch/pictures/{name}")


@pytest.fixture(scope="module")
def url():
    """A server that keeps ten groups; other tests may have filled it."""
    with servers.serving(Settings(backend="fake", keep_recent=10, wires=wire_bodies.ALL)) as url:
        yield url


def newest(url: str, events, *edits: bytes, **options) -> tuple[dict, dict]:
    """Score a group, and give the reply and what its readers are told."""
    name = uuid.uuid4().hex
    reply = post(url, *edits, name=name, **options)
    while (event := groups(events, 1)[0].data)["request_id"] != name:
        pass
    return reply.json(), event


# --- what is told ---


def test_a_group_is_told_as_it_was_answered_and_its_pictures_are_there(url):
    with watching(url) as events:
        reply, event = newest(url, events, *EDITS[:3], b"no image", instruction="<b>blue</b>")
    *scored, failed = reply["groups"][0]["scores"]
    told = event["scores"]
    assert told[:-1] == [{name: one[name] for name in told[0]} for one in scored]
    assert told[-1] == {"index": 3, "status": "error", "error": {"code": failed["error"]["code"]}}
    rewards = [one["reward"] for one in scored]
    assert (event["best"], event["worst"]) == (rewards.index(max(rewards)), rewards.index(min(rewards)))
    assert (event["instruction"], event["instruction_cut"]) == ("<b>blue</b>", False)
    assert (event["wire"], event["key"]) == (None, None)
    assert (event["model"], event["fingerprint"]) == (reply["model"], reply["fingerprint"])
    assert abs(event["time"] - reply["created"]) < 5
    names = event["pictures"]
    shown = {names["sources"][0]: SOURCE, names["best"]: EDITS[event["best"]], names["worst"]: EDITS[event["worst"]]}
    assert len(shown) == 3
    for name, data in shown.items():
        found = picture(url, name)
        assert (found.content, found.headers["content-type"]) == (data, "image/png")
        assert found.headers["x-content-type-options"] == "nosniff"
        assert found.headers["cache-control"] == "no-store"


def test_a_stream_begins_with_hello_and_goes_on(url):
    with watching(url) as events:
        hello = next(events)
        assert (hello.name, hello.data["keep_recent"], hello.data["keep_bytes"]) == ("hello", 10, 64_000_000)
        assert hello.data["dimensions"] == ["instruction_following", "visual_quality"]
        assert {"fingerprint", "model", "first_hour", "now", "drift"} < hello.data.keys()
        post(url, *EDITS)
        window = next(event for event in events if event.name == "window" and event.data["buckets"])
        [bucket] = window.data["buckets"][-1:]
        assert set(bucket["dimensions"]) == set(hello.data["dimensions"])
        assert bucket["reward"]["count"] + bucket["errors"] == bucket["candidates"]


def test_groups_come_in_order_and_a_reader_that_comes_back_has_none_twice(url):
    with watching(url) as events:
        newest(url, events, EDITS[0])
        for number in range(4):
            post(url, EDITS[0], name=f"req-{number}")
        first = groups(events, 4)
    assert [event.data["request_id"] for event in first] == [f"req-{number}" for number in range(4)]
    with watching(url, after=first[1].id) as events:
        assert groups(events, 2) == first[2:]
    with watching(url, after="another-run-1") as events:
        kept = groups(events, 4)
        assert len({event.id for event in kept}) == 4


def test_old_groups_go_with_their_pictures():
    with servers.serving(Settings(backend="fake", keep_recent=2)) as url:
        with watching(url) as events:
            for edit in EDITS[:3]:
                post(url, edit)
            first, *kept = groups(events, 3)
        with watching(url) as events:
            assert groups(events, 2) == kept
        assert error_of(picture(url, first.data["pictures"]["best"])) == (404, "not_found")
        assert picture(url, first.data["pictures"]["sources"][0]).content == SOURCE  # the others have it too
        assert picture(url, kept[0].data["pictures"]["best"]).status_code == 200


def test_a_group_none_of_whose_edits_has_a_score(url):
    with watching(url) as events:
        _, event = newest(url, events, b"no", b"image")
    assert [one["error"]["code"] for one in event["scores"]] == ["invalid_image"] * 2
    assert (event["best"], event["worst"]) == (None, None)
    assert event["pictures"]["best"] is event["pictures"]["worst"] is None
    assert picture(url, event["pictures"]["sources"][0]).content == SOURCE


@each(("most", "sources"), [(3, (SOURCE, EDITS[3], SOURCE)), (0, ())])
def test_several_sources_and_none(most, sources):
    parts = servers.fake_parts(preparer=FakePreparer(max_sources=most))
    with servers.serving(Settings(backend="fake", keep_recent=5), load=lambda: parts) as url, watching(url) as events:
        _, event = newest(url, events, EDITS[0], EDITS[1], sources=sources)
        assert [picture(url, name).content for name in event["pictures"]["sources"]] == list(sources)


def test_every_wire_is_told_of(url):
    pairs = [Pair(SOURCE, edit, "make it red") for edit in EDITS[:2]]
    with watching(url) as events:
        newest(url, events, EDITS[0])
        httpx.post(f"{url}/score", json=wire_bodies.unirl(pairs))
        httpx.post(f"{url}/compute", json=wire_bodies.flow_factory(pairs))
        unirl, flow_factory = (event.data for event in groups(events, 2))
    assert [unirl["wire"], flow_factory["wire"]] == ["unirl", "flow-factory"]
    assert unirl["scores"] == flow_factory["scores"]
    assert len(unirl["scores"]) == 2
    assert picture(url, unirl["pictures"]["best"]).content in EDITS[:2]


def test_a_request_whose_wire_fails_it_all_has_no_rewards_to_tell_of():
    backend = NaNBackend(FakeBackend(), when=lambda candidate: candidate.instruction == "nan")
    settings = Settings(backend="fake", keep_recent=5)
    with (
        servers.serving(settings, load=lambda: servers.fake_parts(backend)) as url,
        watching(url) as events,
    ):
        reply = httpx.post(f"{url}/compute", json=wire_bodies.flow_factory([Pair(SOURCE, EDITS[0], "nan")]))
        assert set(reply.json()) == {"error"}
        post(url, EDITS[0], instruction="after it")
        [event] = groups(events, 1)
        assert event.data["instruction"] == "after it"


def test_requests_at_once_are_all_told_of_with_their_own_numbers():
    async def score(url: str) -> dict[str, list[float]]:
        async def one(client: AsyncJRMClient, number: int) -> tuple[str, list[float]]:
            scores = await client.score_group(SOURCE, f"instruction {number}", EDITS)
            return f"instruction {number}", scores.rewards.tolist()

        async with AsyncJRMClient(url) as client:
            return dict(await asyncio.gather(*(one(client, number) for number in range(40))))

    with servers.serving(Settings(backend="fake", keep_recent=100)) as url, watching(url) as events:
        answered = asyncio.run(score(url))
        told = groups(events, 40)
        assert len({event.id for event in told}) == 40
        for event in told:
            rewards = [one["reward"] for one in event.data["scores"]]
            assert rewards == pytest.approx(answered[event.data["instruction"]])
        assert Metric(url)("jrm_watch_groups_total") == 40


def test_instructions_and_pictures_are_in_no_log_and_no_metric(url, caplog):
    with caplog.at_level(logging.DEBUG), watching(url) as events:
        newest(url, events, EDITS[0], instruction="the secret garden")
    assert "garden" not in caplog.text
    assert "garden" not in httpx.get(f"{url}/metrics").text


# --- to whom ---


def test_off_there_is_nothing_and_it_says_how_to_turn_it_on(fake_server):
    for path in ("/v1/watch", "/v1/watch/pictures/x"):
        reply = httpx.get(f"{fake_server}{path}")
        assert error_of(reply) == (404, "not_found")
        assert "--keep-recent" in reply.json()["error"]["message"]
    assert "/v1/watch" not in httpx.get(f"{fake_server}/openapi.json").json()["paths"]


def test_a_server_that_does_not_score_says_so():
    app = FastAPI()
    app.include_router(watch_router(None, lambda: servers.FAKE_MODEL, scores=False, scopes=Scopes(None)))

    async def ask(path: str) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            return await client.get(path)

    for path in ("/v1/watch", "/v1/watch/pictures/x"):
        reply = asyncio.run(ask(path))
        assert reply.status_code == 404
        assert "this server does not score" in reply.text
        assert "--keep-recent" not in reply.text


def test_a_stream_is_counted_and_its_duration_is_not():
    with servers.serving(Settings(backend="fake", keep_recent=5)) as url:
        with watching(url) as events:
            next(events)
        for _ in range(100):  # until the server has seen that its reader left
            metrics = httpx.get(f"{url}/metrics").text
            if 'jrm_http_requests_total{method="GET",route="/v1/watch",status="200"} 1.0' in metrics:
                break
            time.sleep(0.05)
        else:
            pytest.fail("it was not counted")
        assert 'jrm_http_request_duration_seconds_count{method="GET",route="/v1/watch"}' not in metrics


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "keys"
    keys = [Key("alice", digest(ALICE.encode())), Key("viewer", digest(VIEWER.encode()), scopes=("watch",))]
    path.write_text("\n".join(key.line() for key in keys))
    with servers.serving(Settings(backend="fake", keep_recent=10, api_keys_file=path)) as url:
        yield url


@each("path", ["/v1/watch", "/v1/watch/pictures/x"])
def test_where_there_are_keys_it_takes_one_with_the_scope(guarded, path):
    assert error_of(httpx.get(guarded + path)) == (401, "unauthorized")
    refused = httpx.get(guarded + path, headers={"authorization": f"Bearer {ALICE}"})
    assert error_of(refused) == (403, "forbidden")
    assert "'watch'" in refused.json()["error"]["message"]
    assert error_of(httpx.get(f"{guarded}{path}?key={VIEWER}")) == (401, "unauthorized")


def test_a_key_with_the_scope_sees_what_others_scored_and_scores_too(guarded):
    with watching(guarded, secret=VIEWER) as events:
        for name, secret in (("alice", ALICE), ("viewer", VIEWER)):
            assert post(guarded, EDITS[0], secret=secret).status_code == 200
            [event] = groups(events, 1)
            assert event.data["key"] == name
    found = httpx.get(
        f"{guarded}/v1/watch/pictures/{event.data['pictures']['best']}", headers={"authorization": f"Bearer {VIEWER}"}
    )
    assert found.content == EDITS[0]


def test_a_key_that_is_taken_out_sees_nothing_more(tmp_path):
    path = tmp_path / "keys"
    alice, viewer = Key("alice", digest(ALICE.encode())), Key("viewer", digest(VIEWER.encode()), scopes=("watch",))
    path.write_text(f"{alice.line()}\n{viewer.line()}\n")
    with (
        servers.serving(Settings(backend="fake", keep_recent=10, api_keys_file=path)) as url,
        watching(url, secret=VIEWER) as events,
    ):
        assert next(events).name == "hello"
        path.write_text(f"{alice.line()}\n")
        while httpx.get(f"{url}/v1/info", headers={"authorization": f"Bearer {VIEWER}"}).status_code != 401:
            pass  # within a second
        assert post(url, EDITS[0], secret=ALICE).status_code == 200
        assert "group" not in [event.name for event in events]  # to its end


def test_one_reader_too_many_is_refused_and_there_is_room_when_one_leaves(url):
    with ExitStack() as others:
        one = others.enter_context(ExitStack())
        one.enter_context(watching(url))
        for _ in range(MAX_READERS - 1):
            others.enter_context(watching(url))
        refused = httpx.get(f"{url}/v1/watch")
        assert error_of(refused) == (429, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        one.close()
        while True:  # until the server has seen that it left
            with httpx.stream("GET", f"{url}/v1/watch") as reply:
                if reply.status_code == 200:
                    break


def test_a_head_is_answered_at_once(url):
    reply = httpx.head(f"{url}/v1/watch")
    assert (reply.status_code, reply.content) == (200, b"")
    assert reply.headers["content-type"].startswith("text/event-stream")


# --- until when ---


def test_readers_are_let_go_when_the_server_drains():
    running = []
    with (
        servers.serving(Settings(backend="fake", keep_recent=5), expose=running) as url,
        watching(url) as events,
    ):
        next(events)
        running[0].handle_exit(signal.SIGTERM, None)
        for _ in events:
            pass  # to its end
    assert not running[0].thread.is_alive()


def test_a_reader_that_reads_nothing_does_not_hold_a_server_that_drains():
    running = []
    with servers.serving(Settings(backend="fake", keep_recent=200), expose=running) as url, socket.socket() as stalled:
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stalled.connect(("127.0.0.1", httpx.URL(url).port))
        stalled.sendall(b"GET /v1/watch HTTP/1.1\r\nhost: localhost\r\n\r\n")
        with watching(url) as events:
            for _ in range(4):  # more than the buffers of a connection hold
                httpx.post(f"{url}/v1/score", json=many_groups(), timeout=60)
                groups(events, 100)
        running[0].handle_exit(signal.SIGTERM, None)
        running[0].thread.join(5)
        assert not running[0].thread.is_alive()


def test_while_the_model_loads_there_is_nothing_to_watch():
    def load():
        raise InternalError("broken")

    with servers.starting(Settings(backend="fake", keep_recent=5), load=load) as url:
        assert error_of(httpx.get(f"{url}/v1/watch")) == (503, "not_ready")


def test_the_sdk_is_answered_whether_or_not_it_is_recorded(url, fake_server):
    with JRMClient(url) as watched, JRMClient(fake_server) as alone:
        scores = [client.score_group(SOURCE, "make it blue", EDITS).rewards for client in (watched, alone)]
    assert scores[0].tolist() == scores[1].tolist()
