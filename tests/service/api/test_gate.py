"""Who may come in: over a real socket, before the body is read."""

import asyncio
import base64
import json
import socket

import httpx
import pytest

from jrm_client import APIStatusError, JRMClient
from jrm_service.api.gate import Gate
from jrm_service.api.keys import Key, digest
from jrm_service.api.limits import RequestSlots
from jrm_service.scoring.fakes import FakeBackend, RecordingBackend, SlowBackend
from jrm_service.settings import Settings
from support import servers
from support.pictures import encode, photo
from support.servers import Metric, error_of

RED, BLUE = (encode(photo(40, 40, seed=n)) for n in range(2))
ALICE, BOB = "jrm_alice-secret", "jrm_bob-secret"
GUARDED = [
    ("POST", "/v1/score"),
    ("POST", "/score"),
    ("POST", "/v1/explain"),
    ("POST", "/explain"),
    ("GET", "/v1/models"),
    ("GET", "/v1/info"),
    ("GET", "/v1/nothing"),
    ("GET", "/v1/score/"),
    ("GET", "/v1//score"),
]
OPEN = ["/health/startup", "/health/live", "/health/ready", "/metrics", "/docs", "/openapi.json"]


def keys_file(path, **limits) -> str:
    lines = [Key("alice", digest(ALICE.encode()), **limits).line(), Key("bob", digest(BOB.encode())).line()]
    path.write_text("\n".join(lines))
    return path


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def pair(edits: int = 1, instruction: str = "make it blue") -> dict:
    images = [base64.b64encode(encode(photo(40, 40, seed=10 + n))).decode() for n in range(edits)]
    source = base64.b64encode(RED).decode()
    return {"groups": [{"source": source, "instruction": instruction, "edits": images}]}


def post(url: str, secret: str | None = None, edits: int = 1) -> httpx.Response:
    return httpx.post(f"{url}/v1/score", json=pair(edits), headers=bearer(secret) if secret else {}, timeout=60)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """The URL of a server that asks for a key."""
    path = keys_file(tmp_path_factory.mktemp("keys") / "keys")
    with servers.serving(Settings(backend="fake", api_keys_file=path)) as url:
        yield url


# --- who ---


@pytest.mark.parametrize(("method", "path"), GUARDED)
def test_without_a_key_nothing_but_the_open_routes_answers(guarded, method, path):
    reply = httpx.request(method, guarded + path, follow_redirects=True)
    assert error_of(reply) == (401, "unauthorized")
    assert reply.json()["error"]["type"] == "authentication_error"
    assert reply.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", OPEN)
def test_probes_and_documentation_need_no_key(guarded, path):
    assert httpx.get(guarded + path).status_code == 200


@pytest.mark.parametrize("secret", [ALICE, BOB])
def test_each_key_opens(guarded, secret):
    assert post(guarded, secret).status_code == 200
    assert httpx.get(f"{guarded}/v1/info", headers=bearer(secret)).status_code == 200


def test_the_scheme_may_be_in_any_case(guarded):
    assert httpx.get(f"{guarded}/v1/models", headers={"authorization": f"bearer  {ALICE}"}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        [("authorization", "Bearer")],
        [("authorization", f"Bearer {ALICE[:-1]}")],
        [("authorization", f"Bearer {ALICE}x")],
        [("authorization", f"Bearer {digest(ALICE.encode()).hex()}")],
        [("authorization", ALICE)],
        [("authorization", f"Basic {ALICE}")],
        [("authorization", "Bearer alice")],
        [("authorization", f"Bearer {ALICE}"), ("authorization", f"Bearer {BOB}")],
        [("authorization", b"Bearer \xff\xfe")],
        [("x-api-key", ALICE)],
    ],
)
def test_whatever_is_not_a_key_is_refused_without_being_repeated(guarded, headers):
    reply = httpx.get(f"{guarded}/v1/info", headers=headers)
    assert error_of(reply) == (401, "unauthorized")
    assert "secret" not in reply.text


def test_a_key_in_the_query_opens_nothing(guarded):
    assert httpx.get(f"{guarded}/v1/info", params={"api_key": ALICE}).status_code == 401


def test_the_sdk_sends_its_key_and_says_when_it_is_wrong(guarded):
    with JRMClient(guarded, api_key=ALICE) as client:
        assert client.score(RED, BLUE, "make it blue").reward
    with JRMClient(guarded, api_key="wrong") as client, pytest.raises(APIStatusError) as refused:
        client.score(RED, BLUE, "make it blue")
    assert (refused.value.status, refused.value.code) == (401, "unauthorized")
    assert "JRM_API_KEY" in str(refused.value)


def test_the_schema_says_that_a_key_is_needed(guarded, fake_server):
    with_keys, without = (httpx.get(f"{url}/openapi.json").json() for url in (guarded, fake_server))
    assert with_keys["paths"]["/v1/score"]["post"]["security"] == [{"key": []}]
    assert "security" not in with_keys["paths"]["/health/live"]["get"]
    assert "securitySchemes" not in without["components"]


def test_refusals_are_counted_by_route_and_reason(guarded):
    before = Metric(guarded)("jrm_rejections_total")
    httpx.post(f"{guarded}/v1/score")
    while Metric(guarded)("jrm_rejections_total") == before:  # counted when the reply is on its way
        pass
    assert Metric(guarded)("jrm_rejections_total") == before + 1
    text = httpx.get(f"{guarded}/metrics").text
    assert 'jrm_rejections_total{reason="unauthorized"}' in text
    assert 'jrm_http_requests_total{method="POST",route="/v1/score",status="401"}' in text


def test_the_body_of_a_stranger_is_not_waited_for(guarded):
    """The head alone is answered: curl, which asks before it sends a large body, never sends it."""
    host, port = guarded.removeprefix("http://").split(":")
    head = b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000000\r\nExpect: 100-continue\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(head)
        reply = connection.recv(65536)
    assert reply.startswith(b"HTTP/1.1 401 ")
    assert b"connection: close" in reply.lower()


def test_a_key_that_is_added_and_one_that_is_taken_out(tmp_path):
    path = keys_file(tmp_path / "keys")
    with servers.serving(Settings(backend="fake", api_keys_file=path)) as url:
        assert post(url, ALICE).status_code == 200
        path.write_text(Key("carol", digest(b"carols")).line())
        while post(url, "carols").status_code != 200:  # within a second
            pass
        assert error_of(post(url, ALICE)) == (401, "unauthorized")


def test_a_server_that_is_not_ready_says_so_only_to_those_with_a_key(tmp_path):
    def load():
        raise ValueError("no such weights")

    with servers.starting(Settings(backend="fake", api_keys_file=keys_file(tmp_path / "keys")), load=load) as url:
        assert error_of(post(url)) == (401, "unauthorized")
        assert error_of(post(url, ALICE)) == (503, "not_ready")


# --- how much ---


def test_a_key_over_its_candidates_per_minute(tmp_path):
    path = keys_file(tmp_path / "keys", candidates_per_minute=6)
    with servers.serving(Settings(backend="fake", api_keys_file=path)) as url:
        assert post(url, ALICE, edits=6).status_code == 200
        refused = post(url, ALICE, edits=6)
        assert error_of(refused) == (429, "rate_limited")
        assert 50 <= int(refused.headers["retry-after"]) <= 60
        assert post(url, BOB, edits=6).status_code == 200


@pytest.mark.parametrize(
    ("limits", "settings", "code"),
    [({"requests": 1}, {}, "rate_limited"), ({}, {"max_requests": 1}, "overloaded")],
    ids=["of the key", "of the server"],
)
def test_one_request_too_many_is_refused_at_once(tmp_path, limits, settings, code):
    path = keys_file(tmp_path / "keys", **limits)
    slow = SlowBackend(FakeBackend(), gated=True)
    settings = Settings(backend="fake", api_keys_file=path, **settings)
    with servers.serving(settings, load=lambda: servers.fake_parts(slow)) as url:
        asyncio.run(_one_too_many(url, slow, code))


async def _one_too_many(url: str, slow: SlowBackend, code: str) -> None:
    async with httpx.AsyncClient(timeout=60, headers=bearer(ALICE)) as client:
        running = asyncio.create_task(client.post(f"{url}/v1/score", json=pair()))
        await asyncio.to_thread(slow.wait_entered)
        refused = await client.post(f"{url}/v1/score", json=pair())
        assert error_of(refused) == (429, code)
        assert int(refused.headers["retry-after"]) >= 1
        assert (await client.get(f"{url}/v1/info")).status_code == 200  # costs nothing, so it is not limited
        slow.open()
        assert (await running).status_code == 200
        assert (await client.post(f"{url}/v1/score", json=pair())).status_code == 200


def test_a_key_with_much_in_the_queue_does_not_hold_up_another(tmp_path):
    slow = SlowBackend(FakeBackend(), gated=True)
    recording = RecordingBackend(slow)
    settings = Settings(backend="fake", api_keys_file=keys_file(tmp_path / "keys"), max_batch_tokens=1)
    with servers.serving(settings, load=lambda: servers.fake_parts(recording)) as url:
        asyncio.run(_greedy_and_small(url, slow))
    order = [candidate.instruction for candidate in recording.seen]
    assert len(order) == 31
    # One was on the device, one may have been fixed ahead of it, then come turns.
    assert order.index("bob") <= 3


async def _greedy_and_small(url: str, slow: SlowBackend) -> None:
    async with httpx.AsyncClient(timeout=60) as client:
        greedy = asyncio.create_task(
            client.post(f"{url}/v1/score", json=pair(30, instruction="alice"), headers=bearer(ALICE))
        )
        await asyncio.to_thread(slow.wait_entered)
        small = asyncio.create_task(
            client.post(f"{url}/v1/score", json=pair(1, instruction="bob"), headers=bearer(BOB))
        )
        await asyncio.to_thread(until_prepared, url, requests=2)
        slow.open()
        assert [(await one).status_code for one in (greedy, small)] == [200, 200]


def until_prepared(url: str, *, requests: int) -> None:
    while Metric(url)("jrm_preprocess_seconds_count") < requests:
        pass


# --- the layer by itself ---


def run(gate: Gate, path: str, headers: dict[str, str] | None = None, method: str = "POST") -> int:
    """The status of a request whose body nobody may read."""
    sent = []

    async def receive():
        raise AssertionError("the body was read")

    async def send(message):
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    scope = {"type": "http", "method": method, "path": path, "headers": raw}
    asyncio.run(gate(scope, receive, send))
    return sent[0]["status"]


async def application(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(scope["path"]).encode()})


def gate(find=None) -> Gate:
    return Gate(application, find=find, slots=RequestSlots(10), open_paths={"/open"})


def test_without_keys_everything_is_open():
    assert run(gate(), "/v1/score") == 200


def test_a_path_that_nobody_thought_of_is_guarded():
    closed = gate(lambda secret: None)
    assert run(closed, "/v2/new", bearer("x")) == 401
    assert [run(closed, path) for path in ("/open", "/open/", "//open", "/OPEN", "/open/../v2/new")] == [200] + [
        401
    ] * 4


def test_a_key_may_be_the_password_of_basic(guarded):
    """What HTTP clients make of http://jrm:KEY@host."""
    for user in ("jrm", "", "anybody"):
        assert httpx.get(f"{guarded}/v1/models", auth=(user, ALICE)).status_code == 200
    wrong = [
        base64.b64encode(f"{ALICE}:".encode()).decode(),
        base64.b64encode(ALICE.encode()).decode(),
        base64.b64encode(b"jrm:" + ALICE.encode() + b"x").decode(),
        "not base64",
        "====",
    ]
    for value in wrong:
        reply = httpx.get(f"{guarded}/v1/models", headers={"authorization": f"Basic {value}"})
        assert error_of(reply) == (401, "unauthorized"), value
