"""What each trainer's client does when something goes wrong: it stops or waits, and never gets a made-up number."""

import logging
import pickle
import threading
from dataclasses import replace

import httpx
import pytest

from jrm_service.api.keys import Key, digest
from jrm_service.scoring.backend import WorkerLost
from jrm_service.scoring.fakes import FakeBackend, NaNBackend, RaisingBackend
from jrm_service.settings import Settings
from support import servers, wire_bodies
from support.cases import each
from support.pictures import encode, photo
from support.servers import Metric
from support.wire_clients import CLIENTS, GaveUp, StillWaiting, Waits, edit_r1, unirl

SOURCE, EDITED, OTHER = (encode(photo(40, 40, seed=n)) for n in range(3))
PAIRS = [wire_bodies.Pair(SOURCE, EDITED, "make it blue"), wire_bodies.Pair(SOURCE, OTHER, "make it blue")]
BAD = [PAIRS[0], wire_bodies.Pair(SOURCE, OTHER[:60], "make it blue")]
SETTINGS = Settings(backend="fake", wires=wire_bodies.ALL)
WHOLE = [name for name in CLIENTS if name != "unirl"]
"""The wires that cannot say that one candidate has no reward."""


@pytest.fixture(scope="module")
def server():
    with servers.serving(SETTINGS) as url:
        yield url


def asked(url: str) -> float:
    return Metric(url)("jrm_wire_requests_total")


def unequal(wire: str) -> dict:
    """One prompt too few."""
    body = getattr(wire_bodies, wire.replace("-", "_"))(PAIRS)
    prompts = {"flow-factory": "prompt", "editscore": "meta_datas"}.get(wire, "prompts")
    return body | {prompts: body[prompts][:1]}


def broken(wire: str) -> list | dict:
    """The second edit is no whole image. A PIL image is whole, but of it there may be too few pixels."""
    if wire != "editscore":
        return BAD
    return {
        "input_images": [[wire_bodies.picture(SOURCE)]] * 2,
        "output_image": [wire_bodies.picture(EDITED), wire_bodies.picture(EDITED).convert("CMYK")],
        "meta_datas": ['{"instruction": "make it blue"}'] * 2,
    }


# --- 400, 422: what the request says is wrong ------------------------------------------------------------------------


@each("wire", WHOLE)
def test_lists_of_unequal_length_stop_the_run_at_once(wire, server):
    before, waits = asked(server), Waits()
    with pytest.raises(GaveUp) as caught:
        CLIENTS[wire](server, unequal(wire), waits)
    assert (asked(server) - before, waits.seconds) == (1, [])
    if wire == "flow-factory":
        assert "unequal length" in str(caught.value)


@each("wire", WHOLE)
def test_one_bad_image_fails_the_whole_request_once(wire, server, caplog):
    before, waits = asked(server), Waits()
    with caplog.at_level(logging.WARNING), pytest.raises(GaveUp) as caught:
        CLIENTS[wire](server, broken(wire), waits)
    assert (asked(server) - before, waits.seconds) == (1, [])
    if wire == "flow-factory":
        assert "image[1]" in str(caught.value)
    (line,) = [record.getMessage() for record in caplog.records if f"wire {wire}:" in record.getMessage()]
    assert "invalid_image" in line
    assert "req-" in line


@each(
    ("changes", "message"),
    [
        ({"prompt": ["make it blue", " "]}, "prompt[1]: the instruction is empty"),
        ({"condition_images": [[wire_bodies.b64(SOURCE)], []]}, "condition_images[1]: the checkpoint 'jrm-fake' takes"),
        ({"condition_images": None}, "condition_images[0]: the checkpoint 'jrm-fake' takes one source image, got none"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_flow_factory_shows_its_user_the_field_that_is_wrong(changes, message, server):
    with pytest.raises(GaveUp) as caught:
        CLIENTS["flow-factory"](server, wire_bodies.flow_factory(PAIRS) | changes, Waits())
    assert str(caught.value).startswith(f"Server error: invalid_request: {message}")


def test_of_unirl_one_bad_image_is_one_error(server):
    (first, nothing), (none, reason) = unirl(server, BAD, Waits())
    assert (nothing, none) == (None, None)
    assert isinstance(first, float)
    assert reason.startswith("requests[1].history[1].image_b64")


def test_of_unirl_the_reply_is_200_when_all_failed(server):
    outcomes = unirl(server, [BAD[1]] * 3, Waits())
    assert [reward for reward, _ in outcomes] == [None] * 3
    assert all(reason for _, reason in outcomes)


def test_of_unirl_an_entry_that_asks_for_nothing_is_one_error(server):
    requests = wire_bodies.unirl([*PAIRS[:1], replace(PAIRS[0], instruction=" ")])
    requests["requests"].append(
        requests["requests"][0] | {"history": [*requests["requests"][0]["history"], {"text": "x"}]}
    )
    (first, nothing), *others = unirl(server, requests, Waits())
    assert nothing is None
    assert isinstance(first, float)
    assert others == [
        (None, "requests[1]: no turn has an instruction"),
        (None, "requests[2]: the last turn has no image"),
    ]


def test_of_edit_r1_metadata_is_as_long_as_the_rest(server):
    body = wire_bodies.edit_r1(PAIRS) | {"metadatas": [{"requirement": "x"}] * (len(PAIRS) + 1)}
    reply = wire_bodies.post_pickle(f"{server}/mode/logits_non_cot", body)
    assert reply.status_code == 400
    assert "unequal length" in pickle.loads(reply.content)["error"]


def test_who_is_not_let_in_is_told_as_the_client_understands_it(tmp_path, caplog):
    keys = tmp_path / "keys"
    keys.write_text(Key("a", digest(b"s")).line())
    settings = Settings(backend="fake", wires=wire_bodies.ALL, api_keys_file=keys)
    with servers.serving(settings) as url, caplog.at_level(logging.WARNING):
        shown = httpx.post(f"{url}/compute", json=wire_bodies.flow_factory(PAIRS))
        pickled = wire_bodies.post_pickle(f"{url}/mode/logits_non_cot", wire_bodies.edit_r1(PAIRS))
        plain = httpx.post(f"{url}/v2/models/jrm/infer", json=wire_bodies.kserve(PAIRS))
        text = httpx.get(f"{url}/metrics").text
    assert (shown.status_code, shown.json()["error"].partition(":")[0]) == (200, "unauthorized")
    assert [reply.status_code for reply in (pickled, plain)] == [401] * 2
    assert all(reply.headers["www-authenticate"] == "Bearer" for reply in (pickled, plain))
    assert pickle.loads(pickled.content)["error"].startswith("unauthorized: ")
    assert list(plain.json()) == ["error"]
    assert 'jrm_wire_requests_total{outcome="unauthorized",wire="flow-factory"} 1.0' in text
    assert [record for record in caplog.records if "wire flow-factory: unauthorized" in record.getMessage()]


def test_of_unirl_an_unknown_reward_stops_the_run(server):
    with pytest.raises(GaveUp, match=r'400 \{"detail":"unknown reward: hpsv2"\}'):
        unirl(server, wire_bodies.unirl(PAIRS, names=["jrm", "hpsv2"]), Waits())


@each("mode", ["score_consistency", "logits_cot", "x" * 200, "%0a"])
def test_a_mode_that_means_nothing_here_stops_the_run(mode, server):
    waits = Waits()
    with pytest.raises(GaveUp, match="KeyError"):
        edit_r1(server, PAIRS, waits, mode)
    assert waits.seconds == []


@each("route", ["/mode/logits_non_cot", "/"])
def test_what_is_no_pickle_is_400(route, server):
    import httpx

    for body in (b"", b"{}", b"\x80\x04Nr\xff\xff\xff\x7f.", b"cos\nsystem\n.", pickle.dumps([1]), pickle.dumps({})):
        reply = httpx.post(f"{server}{route}", content=body)
        assert reply.status_code == 400
        assert set(pickle.loads(reply.content)) == {"error"}
        assert reply.headers["x-request-id"]


# --- 429, 503: what passes -------------------------------------------------------------------------------------------


@pytest.fixture
def limited(tmp_path):
    """A server whose one key has used up its minute; the key is in its URL, as clients without headers have it."""
    path = tmp_path / "keys"
    path.write_text(Key("trainer", digest(b"secret"), candidates_per_minute=2).line())
    settings = SETTINGS.model_copy(update={"api_keys_file": path})
    with servers.serving(settings) as url:
        with_key = url.replace("http://", "http://jrm:secret@")
        assert len(edit_r1(with_key, PAIRS, Waits())) == 2
        yield with_key


@each("wire", CLIENTS)
def test_a_limit_is_waited_for_or_stops_the_run(wire, limited):
    waits = Waits()
    with pytest.raises((GaveUp, StillWaiting)) as caught:
        CLIENTS[wire](limited, PAIRS, waits)
    if wire == "edit-r1":
        assert caught.type is StillWaiting
        assert all(1 <= seconds <= 61 for seconds in waits.seconds)  # what retry-after says
    else:
        assert caught.type is GaveUp
        assert waits.seconds == ([1.0, 1.0] if wire == "unirl" else [])
    if wire == "flow-factory":
        assert "rate_limited" in str(caught.value)


@each("wire", CLIENTS)
def test_a_server_that_is_not_ready_is_waited_for_or_stops_the_run(wire):
    loaded = threading.Event()

    def load():
        loaded.wait(30)
        return servers.fake_parts()

    with servers.starting(SETTINGS, load=load) as url:
        try:
            waits = Waits()
            with pytest.raises(StillWaiting if wire == "edit-r1" else GaveUp):
                CLIENTS[wire](url, PAIRS, waits)
            assert len(waits.seconds) == {"edit-r1": 3, "unirl": 2}.get(wire, 0)
        finally:
            loaded.set()


def test_who_waits_gets_the_scores_once_the_server_is_ready():
    loaded = threading.Event()

    def load():
        loaded.wait(30)
        return servers.fake_parts()

    class UntilReady(Waits):
        def wait(self, seconds: float) -> None:
            self.seconds.append(seconds)
            loaded.set()
            assert len(self.seconds) < 2000

    with servers.starting(SETTINGS, load=load) as url:
        waits = UntilReady()
        assert len(edit_r1(url, PAIRS, waits)) == 2
    assert waits.seconds


@each("wire", CLIENTS)
def test_who_lost_its_devices_is_not_waited_for_and_sent_again(wire):
    """It may be the request that they were lost by: a thousand times of it would take the server from everybody."""
    lost = [RaisingBackend(FakeBackend(), error=lambda: WorkerLost("gone")) for _ in range(4)]
    with servers.serving(SETTINGS, load=lambda: servers.fake_parts(*lost)) as url:
        before, waits = asked(url), Waits()
        if wire == "unirl":
            ((reward, reason),) = unirl(url, PAIRS[:1], waits)
            assert reward is None
            assert "it was tried 3 times" in reason
        else:
            with pytest.raises(GaveUp):
                CLIENTS[wire](url, PAIRS[:1], waits)
        assert (asked(url) - before, waits.seconds) == (1, [])


# --- 500: what is our own fault --------------------------------------------------------------------------------------


@each(("kind", "code"), [(RaisingBackend, "internal"), (NaNBackend, "non_finite_score")], ids=lambda kind: str(kind))
def test_a_failure_of_ours_is_never_asked_for_a_thousand_times(kind, code, caplog):
    with servers.serving(SETTINGS, load=lambda: servers.fake_parts(kind(FakeBackend()))) as url:
        for wire in WHOLE:
            before, waits = asked(url), Waits()
            with pytest.raises(GaveUp):
                CLIENTS[wire](url, PAIRS, waits)
            assert (wire, asked(url) - before, waits.seconds) == (wire, 1, [])
        assert [reward for reward, _ in unirl(url, PAIRS, Waits())] == [None, None]
    assert code in caplog.text


def test_a_pickle_client_never_reads_500_nor_retry_after_for_what_stays(caplog):
    import httpx

    with servers.serving(SETTINGS, load=lambda: servers.fake_parts(RaisingBackend(FakeBackend()))) as url:
        for route, body in (
            ("/mode/logits_non_cot", wire_bodies.edit_r1(PAIRS)),
            ("/", wire_bodies.deepgen(PAIRS)),
            ("/", wire_bodies.editscore(PAIRS)),
        ):
            reply = httpx.post(f"{url}{route}", content=pickle.dumps(body))
            assert reply.status_code == 502
            assert "retry-after" not in reply.headers
            assert pickle.loads(reply.content)["error"].startswith("internal")
