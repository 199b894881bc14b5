"""``POST /v1/score`` over a real socket: the three forms, what each mistake costs, and that nothing else suffers."""

import base64
import contextlib
import json
import socket
import struct
import zlib
from pathlib import Path

import httpx
import pytest

from jrm_service.settings import Settings
from support import servers
from support.pictures import encode, photo
from support.reference import Reference
from support.servers import Metric, error_of

RED, BLUE, GREEN = (encode(photo(40, 40, seed=n)) for n in range(3))


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def group(*edits: bytes, source: bytes = RED, instruction: str = "make it blue") -> dict:
    return {"source": b64(source), "instruction": instruction, "edits": [b64(edit) for edit in edits]}


def pair(**changes) -> dict:
    return {"source": b64(RED), "edited": b64(BLUE), "instruction": "make it blue"} | changes


def post(url: str, body=None, **options) -> httpx.Response:
    return httpx.post(f"{url}/v1/score", json=body, timeout=30, **options)


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises far more than the file holds."""
    body = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + body
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


# --- good requests ---------------------------------------------------------------------------------------------------


def test_a_pair(tiny_server, tiny_checkpoint):
    reply = post(tiny_server, pair()).json()
    expected = Reference(tiny_checkpoint).score(photo(40, 40, seed=0), photo(40, 40, seed=1), "make it blue")
    (result,) = reply["groups"][0]["scores"]
    assert result["reward"] == pytest.approx(expected["reward"], abs=1e-4)
    assert result["reward_std"] == pytest.approx(expected["reward_std"], abs=1e-4)
    for name, (mean, std) in expected["dimensions"].items():
        assert result["dimensions"][name] == {
            "mean": pytest.approx(mean, abs=1e-4),
            "std": pytest.approx(std, abs=1e-4),
        }
    assert (result["index"], result["status"], result["cached"]) == (0, "ok", False)
    assert (reply["object"], reply["model"]) == ("score.list", "jrm-tiny-untrained")
    assert len(reply["fingerprint"]) == 32
    assert reply["precision"] == "float32"
    assert reply["usage"]["candidates"] == 1
    assert reply["usage"]["images"] == 2
    assert set(reply["timings_ms"]) == {"preprocess", "queue", "inference", "total"}


def test_groups_keep_their_order(tiny_server):
    edits = [RED, BLUE, GREEN]
    reply = post(tiny_server, {"groups": [group(*edits), group(*reversed(edits), source=GREEN)]}).json()
    assert [[s["index"] for s in g["scores"]] for g in reply["groups"]] == [[0, 1, 2], [0, 1, 2]]
    assert [g["index"] for g in reply["groups"]] == [0, 1]
    assert reply["usage"]["candidates"] == 6
    assert reply["usage"]["images"] == 3
    for g, source, order in ((0, RED, edits), (1, GREEN, edits[::-1])):
        alone = [post(tiny_server, pair(source=b64(source), edited=b64(edit))).json() for edit in order]
        rewards = [one["groups"][0]["scores"][0]["reward"] for one in alone]
        assert [s["reward"] for s in reply["groups"][g]["scores"]] == pytest.approx(rewards, abs=1e-5)


def reward(response: httpx.Response) -> float:
    assert response.status_code == 200, response.text
    return response.json()["groups"][0]["scores"][0]["reward"]


def test_every_form_of_a_request_gives_the_same_score(tiny_server):
    """Bare base64, wrapped base64, data URL, a plain form, the SDK's form: one reward."""
    as_json = reward(post(tiny_server, pair()))
    wrapped = base64.encodebytes(BLUE).decode()
    assert reward(post(tiny_server, pair(edited=wrapped))) == as_json
    assert reward(post(tiny_server, pair(edited=f"data:image/png;base64,{b64(BLUE)}"))) == as_json
    files = {"source": ("s.png", RED), "edited": ("e.png", BLUE)}
    assert reward(post(tiny_server, files=files, data={"instruction": "make it blue"})) == as_json
    document = {"groups": [{"source": "part:s", "instruction": "make it blue", "edits": ["part:e"]}]}
    parts = {"request": (None, json.dumps(document)), "s": ("s", RED), "e": ("e", BLUE)}
    assert reward(post(tiny_server, files=parts)) == as_json


def test_a_form_with_several_edits_is_one_group(fake_server):
    files = [("source", ("s", RED)), ("edited", ("a", BLUE)), ("edited", ("b", GREEN))]
    reply = post(fake_server, files=files, data={"instruction": "x"}).json()
    assert len(reply["groups"][0]["scores"]) == 2


def test_a_part_may_be_used_many_times(fake_server):
    document = {"groups": [{"source": "part:a", "instruction": "x", "edits": ["part:a", "part:b", "part:b"]}]}
    reply = post(fake_server, files={"request": (None, json.dumps(document)), "a": ("a", RED), "b": ("b", BLUE)})
    scores = reply.json()["groups"][0]["scores"]
    assert scores[1]["reward"] == scores[2]["reward"] != scores[0]["reward"]
    assert reply.json()["usage"]["images"] == 2


def test_both_spellings_of_the_route(fake_server):
    assert httpx.post(f"{fake_server}/score", json=pair()).status_code == 200


def test_the_request_id_is_the_callers(fake_server):
    assert post(fake_server, pair(), headers={"x-request-id": "step-7"}).headers["x-request-id"] == "step-7"
    other = post(fake_server, pair(), headers={"x-request-id": "a" * 500}).headers["x-request-id"]
    assert other.startswith("req-")


# --- refused as a whole ----------------------------------------------------------------------------------------------

BAD_JSON = {
    "both forms": {"groups": [group(BLUE)], **pair()},
    "neither form": {},
    "no groups": {"groups": []},
    "empty group": {"groups": [group()]},
    "missing field": {"source": b64(RED), "instruction": "x"},
    "unknown field": pair(extra=1),
    "unknown field in a group": {"groups": [group(BLUE) | {"edited": b64(BLUE)}]},
    "empty instruction": pair(instruction=""),
    "blank instruction": pair(instruction=" \n\t"),
    "timeout 0": pair(timeout_ms=0),
    "timeout too long": pair(timeout_ms=600_001),
    "timeout not a number": pair(timeout_ms="30000"),
    "timeout not whole": pair(timeout_ms=1.5),
    "image not a string": pair(edited=5),
    "empty image": pair(edited=""),
    "a list": [pair()],
    "a string": "hello",
    "null": None,
}


@pytest.mark.parametrize("kind", BAD_JSON)
def test_bad_json_bodies(fake_server, kind):
    body = json.dumps(BAD_JSON[kind])
    response = httpx.post(f"{fake_server}/v1/score", content=body, headers={"content-type": "application/json"})
    assert error_of(response) == (400, "invalid_request")
    assert response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b'{"groups": [' * 1000, b'{"source": "\\ud800"}', b"NaN"])
def test_broken_json(fake_server, body):
    response = httpx.post(f"{fake_server}/v1/score", content=body, headers={"content-type": "application/json"})
    assert error_of(response) == (400, "invalid_request")


def test_a_field_at_fault_is_named(fake_server):
    error = post(fake_server, {"groups": [group(BLUE), group(BLUE) | {"instruction": ""}]}).json()["error"]
    assert error["param"] == "groups.1.instruction"
    assert error["message"].startswith("groups.1.instruction: ")


GOOD = {"source": (None, RED), "instruction": (None, "x"), "edited": (None, BLUE)}
DOCUMENT = json.dumps({"source": "part:a", "edited": "part:b", "instruction": "x"})
BAD_FORMS = {
    "no source": [(n, v) for n, v in GOOD.items() if n != "source"],
    "no instruction": [(n, v) for n, v in GOOD.items() if n != "instruction"],
    "no edit": [(n, v) for n, v in GOOD.items() if n != "edited"],
    "two sources": [*GOOD.items(), ("source", (None, RED))],
    "two instructions": [*GOOD.items(), ("instruction", (None, "y"))],
    "unknown field": [*GOOD.items(), ("mask", (None, RED))],
    "blank instruction": (GOOD | {"instruction": (None, " ")}).items(),
    "instruction not UTF-8": (GOOD | {"instruction": (None, b"\xff")}).items(),
    "bad timeout": [*GOOD.items(), ("timeout_ms", (None, "soon"))],
    "missing part": [("request", (None, DOCUMENT)), ("a", (None, RED))],
    "repeated part": [("request", (None, DOCUMENT)), ("a", (None, RED)), ("b", (None, BLUE)), ("b", (None, RED))],
    "repeated request": [
        ("request", (None, DOCUMENT)),
        ("request", (None, DOCUMENT)),
        ("a", (None, RED)),
        ("b", (None, RED)),
    ],
    "part of no use": [("request", (None, DOCUMENT)), ("a", (None, RED)), ("b", (None, BLUE)), ("c", (None, RED))],
    "request not JSON": [("request", (None, "{")), ("a", (None, RED)), ("b", (None, BLUE))],
}


@pytest.mark.parametrize("kind", BAD_FORMS)
def test_bad_forms(fake_server, kind):
    assert error_of(post(fake_server, files=list(BAD_FORMS[kind]))) == (400, "invalid_request")


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=b", b""),
        ("multipart/form-data; boundary=" + "b" * 300, b"--b--"),
        ("multipart/form-data; boundary=b", b"--b\r\n"),
        ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="source"\r\n\r\nabc'),
        ("multipart/form-data; boundary=b", b"--b\r\n\r\nno name\r\n--b--\r\n"),
        ("multipart/form-data; boundary=b", b"no boundary at all"),
    ],
)
def test_broken_multipart(fake_server, content_type, body):
    response = httpx.post(f"{fake_server}/v1/score", content=body, headers={"content-type": content_type})
    assert error_of(response) == (400, "invalid_request")


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "image/png", "", "///"])
def test_other_media_types(fake_server, content_type):
    response = httpx.post(f"{fake_server}/v1/score", content=b"x", headers={"content-type": content_type})
    assert error_of(response) == (415, "unsupported_media_type")


def test_a_compressed_body_is_refused(fake_server):
    assert error_of(post(fake_server, pair(), headers={"content-encoding": "gzip"})) == (415, "unsupported_media_type")


def test_wrong_paths_and_methods(fake_server):
    assert error_of(httpx.get(f"{fake_server}/v1/nothing")) == (404, "not_found")
    response = httpx.get(f"{fake_server}/v1/score")
    assert error_of(response) == (405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


def test_a_body_over_the_limit(fake_server):
    response = post(fake_server, pair(edited="A" * 5_000_000))
    assert error_of(response) == (413, "payload_too_large")


def test_a_body_over_the_limit_that_does_not_say_so(fake_server):
    """Chunked: nothing is known before it streams in."""

    def chunks():
        yield b'{"source": "'
        for _ in range(80):
            yield b"A" * 100_000

    headers = {"content-type": "application/json"}
    response = httpx.post(f"{fake_server}/v1/score", content=chunks(), headers=headers, timeout=30)
    assert error_of(response) == (413, "payload_too_large")


def test_too_many_candidates(fake_server):
    assert error_of(post(fake_server, {"groups": [group(*[BLUE] * 65)]})) == (413, "payload_too_large")
    tiny = {"source": "AA==", "instruction": "x", "edits": ["AA=="] * 10_000}
    assert error_of(post(fake_server, {"groups": [tiny]})) == (413, "payload_too_large")


def test_a_body_that_stops_arriving(fake_server, monkeypatch):
    monkeypatch.setattr("jrm_service.api.errors._DRAIN_SECONDS", 0.1)  # what it waits for before it closes
    host, port = fake_server.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(
            b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
        )
        reply = b"".join(iter(lambda: connection.recv(65536), b""))  # until the server closes
    assert reply.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"request_timeout"' in reply


# --- refused for one candidate ---------------------------------------------------------------------------------------

BAD_IMAGES = {
    "not base64": ("!!!", "invalid_image"),
    "bad padding": (b64(BLUE)[:-3], "invalid_image"),
    "not ASCII": ("é" * 8, "invalid_image"),
    "data URL without base64": ("data:image/png,abc", "invalid_image"),
    "a reference to a part": ("part:x", "invalid_image"),
    "text": (b64(b"hello, I am not an image"), "invalid_image"),
    "a GIF": (b64(encode(photo(8, 8).quantize(4), "GIF")), "invalid_image"),
    "truncated PNG": (b64(BLUE[: len(BLUE) // 2]), "invalid_image"),
    "lying header": (b64(bomb(50_000, 50_000)), "image_too_large"),
    "thin": (b64(bomb(100_000, 10)), "image_too_large"),
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_one_bad_edit_costs_one_score(fake_server, kind):
    text, code = BAD_IMAGES[kind]
    good = group(*[GREEN] * 11)
    reply = post(fake_server, {"groups": [good | {"edits": [*good["edits"][:4], text, *good["edits"][4:]]}]})
    assert reply.status_code == 200
    scores = reply.json()["groups"][0]["scores"]
    assert [s["status"] for s in scores] == ["ok"] * 4 + ["error"] + ["ok"] * 7
    assert set(scores[4]) == {"index", "status", "error"}
    assert scores[4]["error"]["code"] == code
    assert scores[4]["error"]["message"].startswith("edits[4]: ")
    assert text not in scores[4]["error"]["message"]


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_a_bad_source_fails_every_candidate_of_its_group_alone(fake_server, kind):
    text, code = BAD_IMAGES[kind]
    reply = post(fake_server, {"groups": [group(BLUE, GREEN) | {"source": text}, group(BLUE)]}).json()
    assert [s["error"]["code"] for s in reply["groups"][0]["scores"]] == [code, code]
    assert [s["error"]["param"] for s in reply["groups"][0]["scores"]] == ["groups[0].source"] * 2
    assert [s["status"] for s in reply["groups"][1]["scores"]] == ["ok"]


def test_no_score_at_all_is_an_error_with_the_same_groups(fake_server):
    response = post(fake_server, {"groups": [group(BLUE) | {"edits": ["!!!", b64(b"text")]}]})
    assert error_of(response) == (422, "invalid_image")
    body = response.json()
    assert body["error"]["message"] == "edits[0]: not valid base64"
    assert [s["error"]["code"] for s in body["groups"][0]["scores"]] == ["invalid_image"] * 2
    assert [s["error"]["param"] for s in body["groups"][0]["scores"]] == ["groups[0].edits[0]", "groups[0].edits[1]"]


def test_a_long_instruction_fails_its_own_group(fake_server):
    reply = post(fake_server, {"groups": [group(BLUE, instruction="x" * 8193), group(BLUE, instruction="x" * 8192)]})
    first, second = reply.json()["groups"]
    assert first["scores"][0]["error"]["code"] == "instruction_too_long"
    assert second["scores"][0]["status"] == "ok"


def test_a_ten_megabyte_instruction(tiny_server):
    response = post(tiny_server, pair(instruction="red " * 2_500_000))
    assert error_of(response) == (422, "instruction_too_long")


def test_an_instruction_beyond_the_models_context(tiny_server):
    response = post(tiny_server, pair(instruction="0" * 8192))
    assert error_of(response) == (422, "instruction_too_long")


def test_an_empty_part_is_an_invalid_image(fake_server):
    files = [("source", ("s", RED)), ("edited", ("a", b"")), ("edited", ("b", BLUE))]
    scores = post(fake_server, files=files, data={"instruction": "x"}).json()["groups"][0]["scores"]
    assert scores[0]["error"] == {
        "code": "invalid_image",
        "message": "edited[0]: empty image",
        "param": "edited[0]",
    }
    assert scores[1]["status"] == "ok"


def test_bad_requests_leave_the_server_as_it_was(tiny_server):
    before = reward(post(tiny_server, pair()))
    for text, _ in BAD_IMAGES.values():
        post(tiny_server, pair(edited=text))
    for body in BAD_JSON.values():
        post(tiny_server, body)
    assert httpx.get(f"{tiny_server}/health/ready").status_code == 200
    assert reward(post(tiny_server, pair())) == before


def test_paths_never_reach_the_file_system(fake_server):
    name = str(Path(__file__))
    assert error_of(post(fake_server, pair(edited=name))) == (422, "invalid_image")
    assert error_of(post(fake_server, pair(edited=f"file://{name}"))) == (422, "invalid_image")


# --- what a hostile body may cost ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b'{"groups":[' + b"1," * 1_000_000 + b"1]}",
        b'{"groups":[{"source":"AA==","instruction":"x","edits":[' + b"1," * 1_000_000 + b"1]}]}",
        b"{" + b",".join(b'"k%d":1' % n for n in range(200_000)) + b"}",
        b'{"a":[' + b'{"a":1},' * 2_000_000 + b"1]}",
        b'{"source":"data:a/a' + b";a=a" * 500_000 + b'","edited":"AA==","instruction":"x"}',
    ],
    ids=["groups", "edits", "unknown fields", "objects", "data URL"],
)
def test_a_body_full_of_mistakes_is_refused_at_the_first(fake_server, body):
    """Collecting every mistake takes minutes and gigabytes: the server must be the same after several of them."""
    before = Metric(fake_server)("process_resident_memory_bytes")
    for _ in range(6):
        reply = httpx.post(
            f"{fake_server}/v1/score", content=body, headers={"content-type": "application/json"}, timeout=60
        )
        assert error_of(reply)[0] in (400, 413, 422)
    assert Metric(fake_server)("process_resident_memory_bytes") - before < 300e6


@pytest.mark.parametrize(
    ("candidates", "padding"), [(65, 0), (1, 5_000_000)], ids=["too many candidates", "too many bytes"]
)
def test_a_refused_body_is_let_go_though_the_caller_stays(fake_server, candidates, padding):
    """The reply is complete, and counted, while the connection is still open."""
    edits = ["AA=="] * candidates
    body = json.dumps({"groups": [{"source": "AA==" + "A" * padding, "instruction": "x", "edits": edits}]}).encode()
    host, port = fake_server.removeprefix("http://").split(":")
    head = (
        f"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    counted = Metric(fake_server)("jrm_http_requests_total")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(head.encode() + body)
        reply = connection.recv(65536)
        assert reply.startswith(b"HTTP/1.1 413 ")
        while Metric(fake_server)("jrm_http_requests_total") - counted < 2:
            pass


def test_a_body_that_drips_is_given_up():
    with servers.serving(Settings(backend="fake", body_timeout_s=5, body_total_timeout_s=0.3)) as url:
        host, port = url.removeprefix("http://").split(":")
        head = b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(head)
            connection.settimeout(0.05)
            reply = b""
            while not reply:
                try:
                    connection.sendall(b" ")
                    reply = connection.recv(65536)
                except TimeoutError:
                    continue
        assert reply.startswith(b"HTTP/1.1 408 ")


def test_small_budgets_are_slow_and_never_stuck(tiny_server, tiny_checkpoint):
    """Room for one image at a time, of each kind: every candidate still gets its score."""
    budgets = {"max_decoded_bytes": 1, "max_prepared_bytes": 2, "preprocess_threads": 1}
    with servers.serving(Settings(**budgets), load=lambda: servers.parts_of(tiny_checkpoint)) as url:
        sources = [encode(photo(30, 30, seed=20 + n)) for n in range(4)]
        groups = [group(RED, BLUE, GREEN, source=source) for source in [*sources, *sources]]
        groups.append(group(*[RED] * 4, source=RED))
        tight, wide = (post(server, {"groups": groups}).json()["groups"] for server in (url, tiny_server))
        assert [len(one["scores"]) for one in tight] == [3] * 8 + [4]
        for one, other in zip(tight, wide, strict=True):
            rewards = [score["reward"] for score in one["scores"]]
            assert rewards == pytest.approx([score["reward"] for score in other["scores"]], abs=1e-5)


def test_a_request_head_is_bounded(fake_server):
    host, port = fake_server.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(b"GET /health/live HTTP/1.1\r\nx: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(400):
                connection.sendall(b"a: b\r\n" * 1000)
            assert b" 400 " in connection.recv(65536).split(b"\r\n")[0]
    assert httpx.get(f"{fake_server}/health/live").status_code == 200


def test_an_offer_to_upgrade_does_not_cost_the_body(fake_server):
    """curl --http2 offers HTTP/2 with every request; the body is still there."""
    headers = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2-settings": "AAMAAABkAAQAoAAAAAIAAAAA"}
    assert post(fake_server, pair(), headers=headers).status_code == 200
