"""What a call puts on the wire, counted where it arrives."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from client.scripted_server import ScriptedServer, refusal, reward_of
from jrm_client import APIStatusError, JRMClient
from jrm_client.images import encode

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
