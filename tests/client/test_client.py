import asyncio
import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from client.conftest import FAST
from client.scripted_server import (
    Reply,
    Request,
    ScriptedServer,
    error_entry,
    refusal,
    reward_of,
    score_all,
    score_entry,
    scores,
)
from jrm_client import APIResponseError, APIStatusError, AsyncJRMClient, JRMClient, ScoreError
from jrm_client.images import encode

Serve = Callable[..., ScriptedServer]
Connect = Callable[..., JRMClient]


def picture(seed: int, size: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


# --- results ----------------------------------------------------------------------------------------------------------


def test_score(serve: Serve, connect: Connect) -> None:
    score = connect(serve()).score(b"S", b"A", "make the car red")
    assert score.reward == reward_of(b"A")
    assert score.dimensions["visual_quality"].mean == reward_of(b"A") - 1.0
    assert score.dimensions["visual_quality"].std == 0.5
    assert (score.reward_std, score.cached, score.model, score.fingerprint) == (0.25, False, "scripted", "f00d")
    assert score.error is None


def test_score_group_keeps_order(serve: Serve, connect: Connect) -> None:
    edits = [b"A", b"B", b"A", b"C"]
    group = connect(serve()).score_group(b"S", "red", edits)
    np.testing.assert_array_equal(group.rewards, np.array([reward_of(e) for e in edits], np.float32))


def test_score_batch_keeps_order_whatever_is_shared(serve: Serve, connect: Connect) -> None:
    server = serve()
    pairs = [(b"S", b"A", "red"), (b"T", b"B", "red"), (b"S", b"C", "blue"), (b"S", b"D", "red"), (b"S", b"A", "red")]
    rewards = [score.reward for score in connect(server).score_batch(pairs)]
    assert rewards == [reward_of(edited) for _, edited, _ in pairs]
    groups = server.requests[0].json["groups"]
    assert [(g["instruction"], len(g["edits"])) for g in groups] == [("red", 3), ("red", 1), ("blue", 1)]


def test_no_source_and_several(serve: Serve, connect: Connect) -> None:
    server = serve()
    client = connect(server)
    assert client.score(edited=b"A", instruction="a red car").reward == reward_of(b"A")
    assert len(client.score_group(instruction="a red car", edits=[b"A", b"B"])) == 2
    client.score_group(None, "red", [b"A"])
    client.score([b"S", b"T"], b"A", "red")
    client.score((b"S",), b"A", "red")
    client.score_batch(
        [(None, b"A", "red"), ([b"S", b"T", b"S"], b"B", "red"), (b"S", b"C", "red"), ([b"S"], b"D", "red")]
    )
    sent = [
        [[request.images[name] for name in _listed(group.get("source", []))] for group in request.json["groups"]]
        for request in server.requests
    ]
    assert sent == [[[]], [[]], [[]], [[b"S", b"T"]], [[b"S"]], [[], [b"S", b"T", b"S"], [b"S"]]]
    assert len(server.requests[-1].images) == 6  # each distinct one was uploaded once


def _listed(source: str | list[str]) -> list[str]:
    return [source] if isinstance(source, str) else source


def test_an_array_is_one_source_and_a_list_of_arrays_is_several(serve: Serve, connect: Connect) -> None:
    server = serve()
    client = connect(server)
    client.score(picture(1), b"A", "red")
    client.score([picture(1), torch.rand(3, 8, 8)], b"A", "red")
    counts = [len(_listed(request.json["groups"][0]["source"])) for request in server.requests]
    assert counts == [1, 2]
    with pytest.raises(ValueError, match=r"source: .*this is a batch, pass its images one by one"):
        client.score(np.stack([picture(1), picture(2)]), b"A", "red")


def test_a_source_at_fault_is_named_by_its_place(serve: Serve, connect: Connect) -> None:
    client = connect(serve(scores([[error_entry(0, field="source[1]")]])))
    with pytest.raises(ScoreError, match=r"pairs\[0\]\.source\[1\]: not an image"):
        client.score_batch([([b"S", b"T"], b"A", "red")])
    for given, message in (([b"S", None], r"source\[1\]: NoneType"), ([[b"S"], b"T"], r"source\[0\]: list")):
        with pytest.raises(TypeError, match=message):
            client.score(given, b"A", "red")
    with pytest.raises(ValueError, match="source: an empty list"):
        client.score([], b"A", "red")


def test_every_kind_of_image_at_once(serve: Serve, connect: Connect, tmp_path: Path) -> None:
    pixels = picture(1)
    path = tmp_path / "edit.png"
    Image.fromarray(pixels).save(path)
    floats = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    edits: list[Any] = [path, str(path), path.read_bytes(), Image.fromarray(pixels), pixels, floats, floats.numpy()]
    group = connect(serve()).score_group(path, "red", edits)
    ppm, png = reward_of(encode(pixels, "")), reward_of(path.read_bytes())
    assert [score.reward for score in group] == [png, png, png, ppm, ppm, ppm, ppm]


@pytest.mark.parametrize("batch", [torch.rand(3, 3, 8, 8), torch.rand(3, 3, 8, 8).numpy()])
def test_edits_as_one_batch(serve: Serve, connect: Connect, batch: Any) -> None:
    group = connect(serve()).score_group(b"S", "red", batch)
    assert [score.reward for score in group] == [reward_of(encode(image, "")) for image in batch]


def test_pairs_may_come_from_a_generator(serve: Serve, connect: Connect) -> None:
    client = connect(serve())
    # It calls the client itself, as a lazy data pipeline may: it has to run in the caller's thread.
    pairs = ((b"S", b"%d" % k, client.score(b"S", b"A", "red").model) for k in range(3))
    assert len(client.score_batch(pairs)) == 3


def test_nothing_to_score_needs_no_server() -> None:
    with JRMClient("http://127.0.0.1:9") as client:
        assert client.score_batch([]) == []
        assert client.score_group(b"S", "red", []).rewards.shape == (0,)


# --- failures ---------------------------------------------------------------------------------------------------------


def test_a_failed_candidate_raises_and_the_others_are_kept(serve: Serve, connect: Connect) -> None:
    with pytest.raises(ScoreError, match="1 of 3 candidates have no score; the first is candidate 1") as caught:
        connect(serve()).score_group(b"S", "red", [b"A", b"BAD", b"C"])
    error = caught.value
    assert {index: (e.code, e.message) for index, e in error.failed.items()} == {
        1: ("invalid_image", "edits[1]: not an image")
    }
    assert [score and score.reward for score in error.scores] == [reward_of(b"A"), None, reward_of(b"C")]


def test_on_error_nan(serve: Serve, connect: Connect) -> None:
    group = connect(serve()).score_group(b"S", "red", [b"A", b"BAD"], on_error="nan")
    np.testing.assert_array_equal(group.rewards, np.array([reward_of(b"A"), np.nan], np.float32))
    assert np.isnan(group.dimension("visual_quality")[1])
    assert group[1].error is not None
    assert group[1].error.code == "invalid_image"


def test_a_reply_in_which_every_candidate_failed_is_no_failure_of_the_call(serve: Serve, connect: Connect) -> None:
    server = serve()
    client = connect(server)
    scored = client.score_batch([(b"S", b"BAD1", "red"), (b"S", b"BAD2", "blue")], on_error="nan")
    assert [score.error.code for score in scored if score.error] == ["invalid_image", "invalid_image"]
    with pytest.raises(ScoreError):
        client.score(b"S", b"BAD", "red")
    assert len(server.requests) == 2


@pytest.mark.parametrize(("status", "code"), [(500, "non_finite_score"), (504, "deadline_exceeded")])
def test_verdicts_are_not_retried(serve: Serve, connect: Connect, status: int, code: str) -> None:
    server = serve(refusal(status, code, groups=[{"index": 0, "scores": [error_entry(0, code)]}]))
    with pytest.raises(ScoreError) as caught:
        connect(server).score(b"S", b"A", "red")
    assert caught.value.failed[0].code == code
    assert len(server.requests) == 1


@pytest.mark.parametrize("on_error", ["raise", "nan"])
def test_a_refused_request_always_raises(serve: Serve, connect: Connect, on_error: Any) -> None:
    with pytest.raises(APIStatusError) as caught:
        connect(serve(refusal(400, "invalid_request"))).score(b"S", b"A", "red", on_error=on_error)
    assert (caught.value.status, caught.value.code) == (400, "invalid_request")
    assert caught.value.request_id == "req-7"


def test_one_refused_request_is_the_verdict_on_the_whole_call(serve: Serve, connect: Connect) -> None:
    def picky(request: Request) -> Reply:
        return refusal(413, "payload_too_large") if b"B" in request.images.values() else score_all(request)

    pairs = [(b"S", edit, edit.decode() * 400_000) for edit in (b"A", b"B", b"C")]
    with pytest.raises(APIStatusError, match="payload_too_large"):
        connect(serve(then=picky)).score_batch(pairs, on_error="nan")


def test_scores_of_two_checkpoints_are_not_mixed(serve: Serve, connect: Connect) -> None:
    def other(request: Request) -> Reply:
        return scores([[score_entry(0, b"A")] for _ in request.json["groups"]], fingerprint="beef")

    with pytest.raises(APIResponseError, match="beef, f00d"):
        connect(serve(other)).score_batch([(b"S", b"A", f"{k}" + "x" * 400_000) for k in range(2)])


def test_arguments_are_checked_before_anything_is_sent(serve: Serve, connect: Connect) -> None:
    server = serve()
    client = connect(server)
    floats = torch.full((3, 8, 8), torch.nan)
    with pytest.raises(ValueError, match=r"^edits\[1\]: .*NaN"):
        client.score_group(b"S", "red", [b"A", floats])
    with pytest.raises(FileNotFoundError, match=r"pairs\[0\]\.source"):
        client.score_batch([("/no/such/file", b"A", "red")])
    with pytest.raises(ValueError, match=r"pairs\[1\]\.instruction: empty"):
        client.score_batch([(b"S", b"A", "red"), (b"S", b"A", " ")])
    with pytest.raises(TypeError, match="edits: a single str"):
        client.score_group(b"S", "red", "edit.png")
    with pytest.raises(ValueError, match=r"edits: an array of shape \(8, 8, 3\)"):
        client.score_group(b"S", "red", picture(0))
    with pytest.raises(ValueError, match="on_error='zero'"):
        client.score(b"S", b"A", "red", on_error="zero")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="timeout=0"):
        client.score(b"S", b"A", "red", timeout=0)
    assert server.requests == []


# --- other calls ------------------------------------------------------------------------------------------------------

EXPLANATION = {
    "status": "ok",
    "reasoning": "<|bbox_0|> The square is red <|global|> fine",
    "segments": [{"region": 0, "text": "The square is red"}, {"region": "global", "text": "fine"}],
    "edit_regions": [{"id": 0, "label": "square", "bbox_2d": [120, 80, 400, 360], "bbox_pixels": [15, 10, 51, 46]}],
    "raw": "{}",
    "finish_reason": "stop",
    "usage": {"prompt_tokens": 610, "completion_tokens": 88},
}


def explanation(*dimensions: str) -> Reply:
    explanations = dict.fromkeys(dimensions, EXPLANATION)
    return Reply(
        json={"id": "e", "object": "explanation", "model": "m", "fingerprint": "f", "explanations": explanations}
    )


def test_explain(serve: Serve, connect: Connect) -> None:
    server = serve(explanation("instruction_following"))
    explained = connect(server).explain(b"S", b"A", "red", dimensions=["instruction_following"], max_tokens=64)
    assert explained["instruction_following"].edit_regions[0].bbox_pixels == (15, 10, 51, 46)
    assert explained["instruction_following"].segments[1].region == "global"
    [request] = server.requests
    body = json.loads(request.body)
    assert request.path == "/v1/explain"
    assert (base64.b64decode(body["source"]), base64.b64decode(body["edited"])) == (b"S", b"A")
    assert (body["dimensions"], body["max_tokens"], body["stream"]) == (["instruction_following"], 64, False)


def test_an_explanation_that_was_asked_for_and_is_missing(serve: Serve, connect: Connect) -> None:
    with pytest.raises(APIResponseError, match="lacks explanations of visual_quality"):
        connect(serve(explanation("instruction_following"))).explain(b"S", b"A", "red", dimensions=["visual_quality"])


def test_info(serve: Serve, connect: Connect) -> None:
    server = serve(Reply(json={"fingerprint": "f00d"}))
    assert connect(server).info() == {"fingerprint": "f00d"}
    assert (server.requests[0].method, server.requests[0].path) == ("GET", "/v1/info")


def test_a_base_url_may_have_a_path(serve: Serve) -> None:
    server = serve()
    with JRMClient(f"{server.url}/team/jrm/") as client:
        client.score(b"S", b"A", "red")
    assert server.requests[0].path == "/team/jrm/v1/score"


def test_the_asynchronous_client_has_the_same_methods(serve: Serve) -> None:
    server = serve(score_all, score_all, score_all, explanation("quality"), Reply(json={}))

    async def use() -> list[float]:
        async with AsyncJRMClient(server.url, backoff=FAST) as client:
            score = await client.score(b"S", b"A", "red")
            group = await client.score_group(b"S", "red", [b"B"])
            [last] = await client.score_batch([(b"S", b"C", "red")])
            assert (await client.explain(b"S", b"A", "red"))["quality"].status == "ok"
            assert await client.info() == {}
            return [score.reward, group[0].reward, last.reward]

    assert asyncio.run(use()) == [reward_of(b"A"), reward_of(b"B"), reward_of(b"C")]
    public = {name for name in dir(JRMClient) if not name.startswith("_")}
    assert public <= set(dir(AsyncJRMClient))


def test_the_asynchronous_client_works_in_one_event_loop_after_another(serve: Serve) -> None:
    server = serve()
    client = AsyncJRMClient(server.url)

    async def use() -> float:
        try:
            return (await client.score(b"S", b"A", "red")).reward
        finally:
            await client.close()

    assert asyncio.run(use()) == asyncio.run(use()) == reward_of(b"A")
