"""What a call puts on the wire, counted where it arrives."""

import contextlib
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from client.scripted_server import Reply, Request, ScriptedServer, refusal, reward_of, score_all
from jrm_client import APIResponseError, APIStatusError, JRMClient, uploads
from jrm_client.images import encode
from jrm_client.protocol import TIMEOUT_HEADER

Serve = Callable[..., ScriptedServer]
Connect = Callable[..., JRMClient]


def picture(seed: int, size: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def test_a_distinct_image_is_uploaded_once(serve: Serve, connect: Connect, tmp_path: Path) -> None:
    server = serve()
    source = picture(0, 64)
    path = tmp_path / "source.ppm"
    path.write_bytes(encode(source, ""))
    edits = [picture(k, 64) for k in (1, 2, 3)]
    pairs = [(source.copy(), edit, text) for text in ("red", "blue") for edit in edits]
    pairs += [(str(path), edits[0], "green"), (Image.fromarray(source), edits[1].copy(), "green")]
    connect(server).score_batch(pairs)
    [request] = server.requests
    assert len(request.images) == 4
    assert len(request.body) < 4 * (3 * 64 * 64) + 6000


def test_an_object_that_is_shared_is_encoded_once(serve: Serve, connect: Connect) -> None:
    class Counted:
        shape = (3, 8, 8)
        calls = 0

        def detach(self) -> Any:
            type(self).calls += 1
            return torch.zeros(self.shape)

        def cpu(self) -> None: ...

        def numpy(self) -> None: ...

    source = Counted()
    connect(serve()).score_batch([(source, b"A", "red"), (source, b"B", "blue"), (source, source, "red")])
    assert Counted.calls == 1


def test_large_calls_are_split_by_bytes(serve: Serve, connect: Connect) -> None:
    server = serve()
    edits = [bytes([k]) * (20 * 2**20) for k in range(5)]
    group = connect(server).score_group(b"S", "red", edits)
    assert [score.reward for score in group] == [reward_of(edit) for edit in edits]
    assert sorted(len(request.images) for request in server.requests) == [2, 3, 3]


def test_large_calls_are_split_by_candidates(serve: Serve, connect: Connect) -> None:
    server = serve()
    rewards = connect(server).score_group(b"S", "red", [b"A", b"B"] * 600).rewards
    assert rewards.tolist() == [pytest.approx(reward_of(b"A")), pytest.approx(reward_of(b"B"))] * 600
    assert sorted(len(request.json["groups"][0]["edits"]) for request in server.requests) == [240] * 5


def test_requests_in_flight_are_bounded(serve: Serve, connect: Connect) -> None:
    server = serve()
    connect(server, max_concurrency=2).score_batch([(b"S", b"A", f"{k}" + "x" * 400_000) for k in range(6)])
    assert len(server.requests) == 6
    assert server.connections <= 2


def test_the_server_gets_the_remaining_time(serve: Serve, connect: Connect) -> None:
    server = serve()
    client = connect(server, timeout=20)
    client.score(b"S", b"A", "red")
    client.score(b"S", b"A", "red", timeout=5)
    client.score(b"S", b"A", "red", timeout=5000)
    first, second, third = (request.json["timeout_ms"] for request in server.requests)
    assert 5_000 < first < 20_000
    assert 0 < second < 5_000
    assert third == 600_000


def test_the_key_is_a_bearer_token(serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve()
    connect(server).score(b"S", b"A", "red")
    connect(server, api_key="sk-argument").score(b"S", b"A", "red")
    monkeypatch.setenv("JRM_API_KEY", "sk-environment")
    connect(server).score(b"S", b"A", "red")
    keys = [request.headers.get("authorization") for request in server.requests]
    assert keys == [None, "Bearer sk-argument", "Bearer sk-environment"]


def test_the_key_stays_out_of_sight(serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    client = connect(serve(refusal(401, "unauthorized")), api_key="sk-s3cret")
    with pytest.raises(APIStatusError) as caught:
        client.score(b"S", b"A", "red")
    assert "s3cret" not in f"{client!r} {vars(caught.value)} {caught.value}"
    assert all("s3cret" not in record.getMessage() for record in caplog.records)


def test_instructions_in_any_script(serve: Serve, connect: Connect) -> None:
    server = serve()
    text = '把汽车变红 {instruction} <|Reward|> "quoted" \\ \n \U0001f697'
    connect(server).score(b"S", b"A", text)
    assert server.requests[0].json["groups"][0]["instruction"] == text


class Drawn:
    """An image that exists while it is looked at only; a tensor as far as the client can tell."""

    shape = (512, 512, 3)

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def detach(self) -> Any:
        return torch.full(self.shape, self.seed, dtype=torch.uint8)

    def cpu(self) -> None: ...

    def numpy(self) -> None: ...


def test_a_call_holds_what_it_sends_and_not_all_that_it_was_given(serve: Serve, connect: Connect) -> None:
    sent: list[int] = []

    def answer(request: Request) -> Reply:
        reply = score_all(request)
        sent.append(len(request.body))
        request.body = b""  # the server's own memory is not the question
        return reply

    server = serve(then=answer)
    pairs = [(Drawn(k % 50), Drawn(k % 251), f"edit {k}") for k in range(300)]
    whole = 300 * 2 * 3 * 512 * 512
    with connect(server, max_concurrency=1, timeout=300) as client:
        tracemalloc.start()
        try:
            found = client.score_batch(pairs)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert [score.reward for score in found] == [
        reward_of(encode(torch.full(Drawn.shape, k % 251, dtype=torch.uint8), "")) for k in range(300)
    ]
    assert max(sent) < 50 * 2**20
    assert peak < whole / 2, (peak, whole)


def test_images_are_encoded_when_their_request_is_sent(serve: Serve, connect: Connect) -> None:
    encoded: list[str] = []

    class Logged(Drawn):
        def detach(self) -> Any:
            encoded.append(f"image {self.seed}")
            return super().detach()

    def answer(request: Request) -> Reply:
        encoded.append("request")
        return score_all(request)

    group = [Logged(k) for k in range(100)]
    connect(serve(then=answer), max_concurrency=1).score_group(b"S", "red", group)
    assert encoded.count("request") > 1
    assert encoded.index("request") < 100 - encoded[::-1].index("request")
    assert len(encoded[: encoded.index("request")]) < 100


def test_a_source_that_changes_during_the_call_is_refused(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Changing(Drawn):
        def detach(self) -> Any:
            self.seed += 1
            return super().detach()

    monkeypatch.setattr(uploads, "KEPT_BYTES", 0)
    with pytest.raises(ValueError, match=r"^source: this image changed while it was being scored"):
        connect(serve()).score(Changing(1), b"A", "red")


def test_every_post_says_how_much_time_is_left(serve: Serve, connect: Connect) -> None:
    server = serve(refusal(503, "not_ready"), score_all, then=Reply(json={}))
    client = connect(server, timeout=20)
    client.score(b"S", b"A", "red")
    with contextlib.suppress(APIResponseError):
        client.explain(b"S", b"A", "red")
    with contextlib.suppress(APIResponseError):
        list(client.explain_stream(b"S", b"A", "red"))
    client.info()
    *posts, get = server.requests
    assert [request.path for request in posts] == ["/v1/score", "/v1/score", "/v1/explain", "/v1/explain"]
    for request in posts:
        body = request.json if request.path == "/v1/score" else json.loads(request.body)
        assert int(request.headers[TIMEOUT_HEADER]) == body["timeout_ms"] <= 20_000
        assert "x-jrm-candidates" not in request.headers
    assert TIMEOUT_HEADER not in get.headers
