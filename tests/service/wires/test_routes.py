"""Which routes there are, what the reward is called, and what is said when the server starts."""

import json
import logging
import math
import threading

import httpx
import pytest
from pydantic import ValidationError

from jrm_client import JRMClient
from jrm_client.report import to_json
from jrm_service.api.keys import Key, digest
from jrm_service.scoring.types import Scale, ServedModel
from jrm_service.settings import WIRES as NAMES
from jrm_service.settings import Settings
from jrm_service.wires.routes import WIRES
from support import servers, wire_bodies
from support.cases import each
from support.pictures import encode, photo
from support.servers import error_of

PAIR = wire_bodies.Pair(encode(photo(40, 40)), encode(photo(40, 40, seed=1)), "make it blue")
JSON = {"accept": "application/json"}


def test_the_settings_name_the_wires_that_there_are():
    assert set(NAMES) == set(WIRES)


def test_health_names_what_the_reward_may_be_called(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text(Key("a", digest(b"s")).line())
    settings = Settings(backend="fake", reward_names="editreward, hpsv3", api_keys_file=keys)
    with servers.serving(settings) as url:
        reply = httpx.get(f"{url}/health")
        assert reply.status_code == 200
        names = ["jrm", "jrm-fake", "editreward", "hpsv3"]
        assert reply.json() == {"status": "ok", "rewards": {name: ["ready"] for name in names}}
        assert httpx.get(f"{url}/rewards").status_code == 401
        assert httpx.get(f"{url}/rewards", auth=("jrm", "s")).json() == {"rewards": names}
        for name in names:
            reply = httpx.post(f"{url}/score", json=wire_bodies.unirl([PAIR], names=[name]), auth=("", "s"))
            assert [*reply.json()["results"][0]] == [name]


def test_health_is_503_while_the_model_loads():
    loaded = threading.Event()

    def load():
        loaded.wait(30)
        return servers.fake_parts()

    with servers.starting(load=load) as url:
        try:
            reply = httpx.get(f"{url}/health")
            assert (reply.status_code, reply.json()) == (503, {"status": "unavailable", "rewards": {}})
            for route in ("/v2/health/ready", "/v2/models/jrm", "/v2/models/jrm/ready"):
                assert httpx.get(f"{url}{route}").status_code == 503
            assert httpx.get(f"{url}/v2/health/live").status_code == 200
        finally:
            loaded.set()


@each(
    ("wires", "there", "not_there"),
    [
        ("none", [], ["/compute", "/rerank", "/v2/models/jrm/infer", "/mode/logits_non_cot", "/"]),
        ("deepgen", ["/"], ["/compute", "/rerank", "/v2/models/jrm/infer", "/mode/logits_non_cot"]),
        ("edit-r1,flow-factory", ["/mode/logits_non_cot", "/compute"], ["/v1/rerank", "/"]),
    ],
)
def test_only_the_wires_that_are_named_have_routes(wires, there, not_there):
    with servers.serving(Settings(backend="fake", wires=wires)) as url:
        assert all(httpx.post(f"{url}{route}", content=b"x").status_code != 404 for route in there)
        assert all(httpx.post(f"{url}{route}", content=b"x").status_code == 404 for route in not_there)
        refusal = httpx.post(f"{url}/score", json=wire_bodies.unirl([PAIR]))
        assert error_of(refusal) == (400, "invalid_request")  # a field that our own requests do not have
        assert httpx.get(f"{url}/health").status_code == 200


def test_the_root_is_a_page_for_browsers_and_a_greeting_while_a_wire_uses_it(fake_server):
    assert (
        httpx.get(f"{fake_server}/", headers={"accept": "text/html,*/*"})
        .headers["content-type"]
        .startswith("text/html")
    )
    assert error_of(httpx.get(f"{fake_server}/", headers=JSON)) == (404, "not_found")
    with servers.serving(Settings(backend="fake", wires="editscore")) as url:
        assert httpx.get(f"{url}/").json() == {"status": "ok", "service": "jrm"}
        assert "text/html" in httpx.get(f"{url}/", headers={"accept": "text/html"}).headers["content-type"]


def test_equal_sources_and_instructions_are_one_group_and_answers_keep_their_order(fake_server):
    pairs = [
        wire_bodies.Pair(encode(photo(40, 40, seed=n % 2)), encode(photo(40, 40, seed=10 + n)), f"edit {n % 3}")
        for n in range(12)
    ]
    before = servers.Metric(fake_server)("jrm_images_decoded_total")
    reply = httpx.post(f"{fake_server}/compute", json=wire_bodies.flow_factory(pairs), timeout=60)
    assert servers.Metric(fake_server)("jrm_images_decoded_total") - before == 2 + 12
    assert reply.json()["rewards"] == wire_bodies.rewards_of_score(fake_server, pairs)


def test_a_label_and_the_log_say_which_wire(fake_server, caplog):
    with caplog.at_level(logging.INFO, "jrm.access"):
        httpx.post(f"{fake_server}/compute", json=wire_bodies.flow_factory([PAIR]))
        httpx.post(f"{fake_server}/compute", json={"prompt": ["x"]})
    text = httpx.get(f"{fake_server}/metrics").text
    assert 'jrm_wire_requests_total{outcome="ok",wire="flow-factory"}' in text
    assert 'jrm_wire_requests_total{outcome="invalid_request",wire="flow-factory"}' in text
    assert [record.fields["wire"] for record in caplog.records if record.name == "jrm.access"] == ["flow-factory"] * 2


def test_routes_with_names_in_them_are_one_label():
    with servers.serving(Settings(backend="fake", wires="edit-r1,kserve")) as url:
        for mode in ("a", "b"):
            wire_bodies.post_pickle(f"{url}/mode/{mode}", {})
        assert httpx.get(f"{url}/v2/models/nobody").status_code == 404
        text = httpx.get(f"{url}/metrics").text
    assert 'jrm_http_requests_total{method="POST",route="/mode/{mode}",status="400"} 2.0' in text
    assert 'route="/v2/models/{name}"' in text


def test_bodies_over_the_limit_are_refused_as_they_come():
    with servers.serving(Settings(backend="fake", wires=wire_bodies.ALL, max_body_bytes=1000, max_candidates=2)) as url:
        large = wire_bodies.post_pickle(f"{url}/mode/logits_non_cot", {"images": [bytes(2000)]})
        assert large.status_code == 413
        assert "payload_too_large" in str(large.content)
        error = httpx.post(f"{url}/compute", json={"prompt": ["x" * 2000]}).json()["error"]
        assert error.startswith("payload_too_large")


# --- scale -----------------------------------------------------------------------------------------------------------

SCALED = ServedModel("scaled", "fake", {"reward": {"normalize": {"center": 0.5, "scale": 2.0}}})


def scaled_parts():
    parts = servers.fake_parts()
    return type(parts)(SCALED, parts.preparer, parts.backends)


@each("wire", wire_bodies.ALL.split(","))
def test_a_wire_sends_normalized_rewards_where_it_was_told_to(wire):
    settings = Settings(backend="fake", wires=wire_bodies.ALL, wire_scale=f"{wire}=normalized")
    with servers.serving(settings, load=scaled_parts) as url:
        raw = wire_bodies.rewards_of_score(url, [PAIR])
        for other in wire_bodies.ALL.split(","):
            expected = [Scale(0.5, 2.0).normalized(reward) for reward in raw] if other == wire else raw
            assert wire_bodies.rewards_over(other, url, [PAIR]) == expected, other


def test_our_own_route_has_both_numbers():
    with servers.serving(load=scaled_parts) as url:
        body = {"source": wire_bodies.b64(PAIR.source), "edited": wire_bodies.b64(PAIR.edited), "instruction": "x"}
        (score,) = httpx.post(f"{url}/v1/score", json=body).json()["groups"][0]["scores"]
        with JRMClient(url) as client:
            through_sdk = client.score(PAIR.source, PAIR.edited, "x")
    assert score["normalized"] == Scale(0.5, 2.0).normalized(score["reward"])
    assert (through_sdk.reward, through_sdk.normalized) == (score["reward"], score["normalized"])
    assert to_json(through_sdk)["normalized"] == score["normalized"]


def test_without_a_scale_there_is_no_second_number(fake_server):
    body = {"source": wire_bodies.b64(PAIR.source), "edited": wire_bodies.b64(PAIR.edited), "instruction": "x"}
    (score,) = httpx.post(f"{fake_server}/v1/score", json=body).json()["groups"][0]["scores"]
    assert "normalized" not in score
    with JRMClient(fake_server) as client:
        alone = client.score(PAIR.source, PAIR.edited, "x")
        (failed,) = client.score_group(PAIR.source, "x", [b"no image"], on_error="nan")
    assert alone.normalized is None
    assert "normalized" not in to_json(alone)
    assert math.isnan(failed.normalized)


def test_normalized_rewards_of_a_checkpoint_without_a_scale_end_the_start():
    heard, told = threading.Event(), []
    settings = Settings(backend="fake", wires="edit-r1", wire_scale="edit-r1=normalized")
    with servers.starting(settings, on_failed=lambda error: (told.append(error), heard.set())) as url:
        assert heard.wait(30)
        assert httpx.get(f"{url}/health").status_code == 503
    assert "has no reward.normalize" in str(told[0])


def test_a_dimension_is_not_normalized():
    settings = Settings(backend="fake", wires="edit-r1", wire_scale="edit-r1=normalized")
    with servers.serving(settings, load=scaled_parts) as url:
        assert wire_bodies.post_pickle(f"{url}/mode/score_execution", wire_bodies.edit_r1([PAIR])).status_code == 400


@each(
    ("wires", "scale", "warned"),
    [
        ("unirl,flow-factory,kserve,rerank,deepgen", "", 0),
        ("edit-r1", "", 1),
        ("edit-r1,editscore", "", 2),
        ("edit-r1,editscore", "edit-r1=normalized", 1),
        ("edit-r1,editscore", "edit-r1=normalized,editscore=normalized", 0),
        ("edit-r1", "edit-r1=raw", 1),
    ],
)
def test_a_raw_reward_for_a_client_that_assumes_0_to_1_is_said_once(wires, scale, warned, caplog):
    caplog.clear()
    with servers.serving(Settings(backend="fake", wires=wires, wire_scale=scale), load=scaled_parts):
        pass
    assert sum("sends raw rewards" in record.getMessage() for record in caplog.records) == warned


@each(
    "changes",
    [
        {"wires": "edit_r1"},
        {"wires": "unirl,nobody"},
        {"wire_scale": "edit-r1=normalized"},
        {"wire_scale": "unirl"},
        {"wire_scale": "unirl=raw,unirl=normalized"},
        {"wire_scale": "unirl=0..1"},
        {"reward_names": "a b"},
        {"reward_names": "x" * 65},
    ],
)
def test_what_cannot_be_meant_is_refused(changes):
    with pytest.raises(ValidationError):
        Settings(**changes)


# --- identities ------------------------------------------------------------------------------------------------------


@each("nested", [[], {}, {"a": [1]}, json.loads("[" * 90 + "]" * 90)], ids=lambda nested: str(nested)[:20])
def test_of_unirl_an_identity_is_text_or_a_number(nested, fake_server):
    for name in ("request_id", "sample_id", "group_id", "source_rank", "policy_version", "idempotency_key"):
        body = wire_bodies.unirl([PAIR], **{"request_id": "a"} | {name: nested})
        reply = httpx.post(f"{fake_server}/score", json=body)
        expected = {"detail": f"requests.0.{name}: must be text, a number or null"}
        assert (reply.status_code, reply.json()) == (400, expected)


def test_of_unirl_an_identity_comes_back_as_it_was_sent(fake_server):
    sent = {"request_id": "a", "sample_id": 7, "group_id": 1.5, "source_rank": True, "policy_version": None}
    body = wire_bodies.unirl([PAIR], **sent)
    (identity,) = httpx.post(f"{fake_server}/score", json=body).json()["identities"]
    assert {name: identity[name] for name in sent} == sent
    assert identity["source_rank"] is True
