import json
from typing import Any

import pytest

from client.scripted_server import Reply as Scripted
from client.scripted_server import error_entry, refusal, score_entry, scores
from jrm_client import APIResponseError, APIStatusError, CandidateError, Score
from jrm_client.batching import Batch, Group
from jrm_client.protocol import GroupsRequest
from jrm_client.wire import Reply, multipart, read_object, read_scores, status_error

BATCH = Batch((Group("S", "red", ("A", "B"), (4, 0)), Group("S", "blau", ("A",), (2,))))
NAMES = [f"pairs[{k}].edited" for k in range(5)]
GOOD = [[score_entry(0, b"A"), score_entry(1, b"B")], [score_entry(0, b"A")]]


def reply(scripted: Scripted) -> Reply:
    body = json.dumps(scripted.json).encode() if scripted.body is None else scripted.body
    return Reply(scripted.status, {key.lower(): value for key, value in scripted.headers.items()}, body, "req-7")


def read(scripted: Scripted) -> dict[int, Score | CandidateError]:
    return read_scores(BATCH, NAMES, reply(scripted))


def test_every_distinct_image_is_one_part_and_the_request_follows_the_contract() -> None:
    images = {"S": b"P6 source", "A": b"\x89PNG a", "B": b"\xff\xd8 b"}
    (name, (filename, body, media_type)), *parts = multipart(BATCH, images, 1234)
    assert (name, filename, media_type) == ("request", None, "application/json")
    assert [(name, data, kind) for name, (_, data, kind) in parts] == [
        ("image-0", b"P6 source", "image/x-portable-pixmap"),
        ("image-1", b"\x89PNG a", "image/png"),
        ("image-2", b"\xff\xd8 b", "application/octet-stream"),
    ]
    request = GroupsRequest.model_validate_json(body)
    assert request.timeout_ms == 1234
    assert [(g.source, g.instruction, g.edits) for g in request.groups] == [
        ("part:image-0", "red", ["part:image-1", "part:image-2"]),
        ("part:image-0", "blau", ["part:image-1"]),
    ]


def test_scores_go_to_the_callers_positions() -> None:
    outcomes = read(scores(GOOD))
    assert {position: outcome.reward for position, outcome in outcomes.items() if isinstance(outcome, Score)} == {
        4: score_entry(0, b"A")["reward"],
        0: score_entry(0, b"B")["reward"],
        2: score_entry(0, b"A")["reward"],
    }
    first = outcomes[4]
    assert isinstance(first, Score)
    assert (first.reward_std, first.cached, first.model, first.fingerprint) == (0.25, False, "scripted", "f00d")
    assert first.dimensions["visual_quality"].std == 0.5


def test_order_in_the_reply_does_not_matter() -> None:
    shuffled = scores(GOOD)
    shuffled.json["groups"].reverse()
    shuffled.json["groups"][1]["scores"].reverse()
    assert read(shuffled) == read(scores(GOOD))


def test_unknown_fields_of_a_newer_server_are_ignored() -> None:
    newer = scores(GOOD)
    newer.json["shiny"] = newer.json["groups"][0]["scores"][0]["shiny"] = 1
    assert read(newer) == read(scores(GOOD))


def test_a_mean_only_checkpoint_has_no_std() -> None:
    plain = scores(GOOD)
    for group in plain.json["groups"]:
        for entry in group["scores"]:
            entry["reward_std"] = None
            entry["dimensions"] = {"quality": {"mean": 1, "std": None}}
    score = read(plain)[0]
    assert isinstance(score, Score)
    assert score.reward_std is None
    assert score.dimensions["quality"].std is None


def test_messages_name_the_callers_image() -> None:
    outcome = read(scores([[error_entry(0), score_entry(1, b"B")], [score_entry(0, b"A")]]))[4]
    assert isinstance(outcome, CandidateError)
    assert outcome.message == "pairs[4].edited: not an image"
    assert (outcome.code, outcome.request_id) == ("invalid_image", "req-7")


@pytest.mark.parametrize("status", [422, 500, 504])
def test_a_refusal_with_groups_is_a_set_of_verdicts(status: int) -> None:
    groups = [
        {"index": 0, "scores": [error_entry(0), error_entry(1, "internal", "it broke")]},
        {"index": 1, "scores": [error_entry(0)]},
    ]
    outcomes = read(refusal(status, "invalid_image", groups=groups))
    assert {k: o.code for k, o in outcomes.items() if isinstance(o, CandidateError)} == {
        4: "invalid_image",
        0: "internal",
        2: "invalid_image",
    }


def broken(change: Any) -> Scripted:
    spoilt = scores(json.loads(json.dumps(GOOD)))
    change(spoilt.json)
    return spoilt


def entry(body: Any) -> Any:
    return body["groups"][0]["scores"][0]


BROKEN = {
    "not JSON": Scripted(body=b"<html>hello</html>"),
    "not an object": Scripted(json=[1]),
    "no groups": broken(lambda b: b.pop("groups")),
    "no fingerprint": broken(lambda b: b.pop("fingerprint")),
    "a group too few": broken(lambda b: b["groups"].pop()),
    "a group twice": broken(lambda b: b["groups"][1].update(index=0)),
    "a score too few": broken(lambda b: b["groups"][0]["scores"].pop()),
    "a score too many": broken(lambda b: b["groups"][1]["scores"].append(score_entry(1, b"X"))),
    "an index twice": broken(lambda b: entry(b).update(index=1)),
    "an index out of range": broken(lambda b: entry(b).update(index=2)),
    "a negative index": broken(lambda b: entry(b).update(index=-1)),
    "no reward": broken(lambda b: entry(b).pop("reward")),
    "null for a reward": broken(lambda b: entry(b).update(reward=None)),
    "a string for a reward": broken(lambda b: entry(b).update(reward="0.5")),
    "a boolean for a reward": broken(lambda b: entry(b).update(reward=True)),
    "NaN for a reward": broken(lambda b: entry(b).update(reward=float("nan"))),
    "infinity for a reward": broken(lambda b: entry(b).update(reward=float("inf"))),
    "NaN for a std": broken(lambda b: entry(b).update(reward_std=float("nan"))),
    "a negative std": broken(lambda b: entry(b).update(reward_std=-0.1)),
    "NaN for a mean": broken(lambda b: entry(b)["dimensions"]["visual_quality"].update(mean=float("nan"))),
    "infinity for a dimension's std": broken(
        lambda b: entry(b)["dimensions"]["visual_quality"].update(std=float("inf"))
    ),
    "no dimensions": broken(lambda b: entry(b).pop("dimensions")),
    "an unknown outcome": broken(lambda b: entry(b).update(status="maybe")),
    "a number beyond floats": Scripted(body=json.dumps(scores(GOOD).json).replace("0.25", "1e999").encode()),
    "a score in a refusal": refusal(500, "internal", groups=scores(GOOD).json["groups"]),
    "a refusal with a group missing": refusal(422, "invalid_image", groups=[{"index": 0, "scores": [error_entry(0)]}]),
    "an empty body": Scripted(body=b""),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_reply_that_breaks_the_contract_gives_no_number(what: str) -> None:
    with pytest.raises(APIResponseError) as caught:
        read(BROKEN[what])
    assert caught.value.request_id == "req-7"


def test_a_refusal_of_the_whole_request() -> None:
    with pytest.raises(APIStatusError, match="the server says overloaded") as caught:
        read(refusal(429, "overloaded", headers={"Retry-After": "2.5"}))
    error = caught.value
    assert (error.status, error.code, error.param, error.retry_after) == (429, "overloaded", None, 2.5)
    assert error.request_id == "req-7"


@pytest.mark.parametrize("body", [b"<html>Bad Gateway</html>", b"", b'{"error": "text"}', b"[" * 100_000])
def test_a_page_from_a_proxy(body: bytes) -> None:
    error = status_error(reply(Scripted(502, body=body)))
    assert (error.status, error.code) == (502, None)
    assert "Bad Gateway" in str(error)


def test_an_unknown_status_and_a_long_message() -> None:
    error = status_error(reply(Scripted(599, json={"error": {"message": "x" * 10_000, "code": 7}})))
    assert error.code is None
    assert len(str(error)) < 1000


def test_a_missing_key_has_its_remedy() -> None:
    assert "JRM_API_KEY" in str(status_error(reply(refusal(401, "unauthorized"))))


def test_read_object() -> None:
    assert read_object(reply(Scripted(json={"a": 1}))) == {"a": 1}
    with pytest.raises(APIResponseError):
        read_object(reply(Scripted(json=[1])))
    with pytest.raises(APIStatusError):
        read_object(reply(refusal(404, "not_found")))
