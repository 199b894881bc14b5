import json
import re
from typing import Any

import pytest

from client.scripted_server import Reply as Scripted
from client.scripted_server import error_entry, refusal, score_entry, scores
from jrm_client import APIResponseError, APIStatusError, CandidateError, Score
from jrm_client.batching import Batch, Group
from jrm_client.protocol import GroupsRequest
from jrm_client.wire import Names, Reply, multipart, read_object, read_scores, status_error

BATCH = Batch((Group(("S",), "red", ("A", "B"), (4, 0)), Group(("S",), "blau", ("A",), (2,))))
NAMES = [Names(f"pairs[{k}].source", f"pairs[{k}].edited", f"pairs[{k}].instruction") for k in range(5)]
GOOD = [[score_entry(0, b"A"), score_entry(1, b"B")], [score_entry(0, b"A")]]


def reply(scripted: Scripted) -> Reply:
    body = json.dumps(scripted.json).encode() if scripted.body is None else scripted.body
    return Reply(scripted.status, {key.lower(): value for key, value in scripted.headers.items()}, body, "req-7")


def read(scripted: Scripted) -> dict[int, Score | CandidateError]:
    return read_scores(BATCH, NAMES, reply(scripted))


def test_a_score_says_what_it_was_computed_in_where_the_server_does() -> None:
    for precision in ("fp8", ""):
        told = scores(GOOD)
        assert isinstance(told.json, dict)
        told.json |= {"precision": precision} if precision else {}
        assert {score.precision for score in read(told).values() if isinstance(score, Score)} == {precision}


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


def test_no_source_is_not_mentioned_one_is_bare_and_several_are_a_list() -> None:
    groups = (
        Group((), "red", ("A",), (0,)),
        Group(("S",), "red", ("A",), (1,)),
        Group(("S", "B"), "red", ("A",), (2,)),
    )
    (_, (_, body, _)), *_ = multipart(Batch(groups), {"S": b"s", "A": b"a", "B": b"b"}, 1)
    sources = [group.get("source", "absent") for group in json.loads(body)["groups"]]
    assert sources == ["absent", "part:image-1", ["part:image-1", "part:image-2"]]


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


def test_messages_name_what_the_caller_passed() -> None:
    outcomes = read(
        scores(
            [
                [error_entry(0), error_entry(1, field="instruction")],
                [error_entry(0, group=1, field="source")],
            ],
        )
    )
    assert {position: outcome.message for position, outcome in outcomes.items()} == {
        4: "pairs[4].edited: not an image",
        0: "pairs[0].instruction: not an image",
        2: "pairs[2].source: not an image",
    }
    assert {(outcome.code, outcome.request_id) for outcome in outcomes.values()} == {("invalid_image", "req-7")}
    several = read(
        scores([[error_entry(0, field="source[1]"), score_entry(1, b"B")], [error_entry(0, group=1, field="edits[0]")]])
    )
    assert several[4].message == "pairs[4].source[1]: not an image"
    assert several[2].message == "pairs[2].edited: not an image"
    for message in ("too late", "groups[0].edits[0]: too late"):
        outcome = read(scores([[error_entry(0, message=message), score_entry(1, b"B")], [score_entry(0, b"A")]]))[4]
        assert outcome.message == "pairs[4].edited: too late"


def test_a_server_that_names_no_field_is_quoted() -> None:
    entry = error_entry(0, message="edits[0]: too late")
    del entry["error"]["param"]
    assert read(scores([[entry, score_entry(1, b"B")], [score_entry(0, b"A")]]))[4].message == "edits[0]: too late"


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


FOREIGN = {
    "a redirect": (
        308,
        {"location": "https://secure.test/v1/score"},
        b"",
        "redirects to 'https://secure.test/v1/score'",
    ),
    "a redirect that cannot be read": (302, {"location": "http://[zz"}, b"", r"redirects to 'http://\[zz'"),
    "a page": (403, {}, b"<html><style>p {}</style><h1>Blocked</h1><p>policy&nbsp;17", "but 'Blocked policy 17'"),
    "a page of a load balancer": (502, {}, b"<html>Bad Gateway</html>", r"\(Bad Gateway\).*but 'Bad Gateway'"),
    "a proxy that wants a password": (407, {}, b"login", "but 'login'; put the user and the password into the proxy's"),
    "text": (503, {}, b"upstream\r\n\x1b[31m down", r"but 'upstream \[31m down'"),
    "JSON": (404, {}, b'{"message": "no Route matched"}', "no Route matched"),
    "an error that is text": (502, {}, b'{"error": "text"}', "but '{.error.: .text.}'"),
    "nothing": (504, {}, b"", "no explanation in the reply; raise timeout"),
    "deep JSON": (502, {}, b"[" * 100_000, r"but '\[{200}…'"),
    "bytes": (500, {}, b"\xff\xfe\x00", "HTTP 500"),
}


def test_replies_of_somebody_else_are_described() -> None:
    for what, (status, headers, body, message) in FOREIGN.items():
        error = status_error(
            Reply(status, headers, body, "req-7", "http://a.test", "http://a.test/v1/score through the proxy P")
        )
        assert (error.status, error.code) == (status, None), what
        assert str(error).startswith(f"HTTP {status} ("), what
        assert "from http://a.test/v1/score through the proxy P" in str(error), what
        assert re.search(message, str(error)), (what, str(error))
        assert len(str(error)) < 600, what


def test_a_200_of_somebody_else_is_described() -> None:
    for body, message in {
        b"<html><title>Sign in</title><body>Hotel": "it begins with 'Sign in Hotel'",
        b'{"id": "score-1", "gro': "Invalid JSON.*it begins with",
        b"": "it is empty",
    }.items():
        for function in (lambda reply: read_scores(BATCH, NAMES, reply), read_object):
            with pytest.raises(APIResponseError, match=r"the reply of http://a.test/v1/score is not a") as caught:
                function(Reply(200, {}, body, "req-7", "http://a.test", "http://a.test/v1/score"))
            if function is not read_object:
                assert re.search(message, str(caught.value)), body


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
