"""The reward functions, called the way Flow-GRPO's trainers call theirs."""

import math
import os
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from client.scripted_server import Reply, ScriptedServer, refusal, reward_of, score_entry, scores
from jrm_client import APIStatusError, ScoreError
from jrm_client.flow_grpo import JRMReward, JRMScore, jrm_reward, jrm_score
from jrm_client.images import encode

Serve = Callable[..., ScriptedServer]
N = 6


@pytest.fixture
def keep() -> Iterator[Callable[[Any], Any]]:
    made: list[JRMScore | JRMReward] = []

    def register(function: Any) -> Any:
        made.append(function)
        return function

    yield register
    for function in made:
        function.close()


def step(seed: int) -> dict[str, Any]:
    """What a rank holds after sampling: N edits, two sources, each source loaded anew for every sample."""
    images = torch.rand(N, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    sources = [Image.new("RGB", (16, 16), (seed, k // 3, 0)) for k in range(N)]
    return {"images": images, "prompts": tuple("red" for _ in range(N)), "ref_images": sources, "metadata": [{}] * N}


def expected(images: Any) -> list[float]:
    return [reward_of(encode(image, "")) for image in images]


def test_reward_as_a_trainer_calls_it(serve: Serve, keep: Callable[[Any], Any]) -> None:
    server = serve()
    reward_fn = keep(jrm_reward(server.url))
    executor = ThreadPoolExecutor(max_workers=8)
    steps = [step(seed) for seed in range(16)]
    futures = [
        executor.submit(reward_fn, s["images"], s["prompts"], s["metadata"], s["ref_images"], only_strict=False)
        for s in steps
    ]
    for s, future in zip(steps, futures, strict=True):
        rewards, details = future.result()
        assert details == {}
        assert list(rewards) == ["avg", "instruction_following", "visual_quality"]
        assert rewards["avg"] == expected(s["images"])
        assert all(type(value) is float for values in rewards.values() for value in values)
        tensors = {key: torch.as_tensor(value).float() for key, value in rewards.items()}
        torch.testing.assert_close(tensors["visual_quality"], tensors["avg"] - 1)
    executor.shutdown()
    assert all(len(request.images) == N + 2 for request in server.requests)  # each source was uploaded once


def test_score_as_multi_score_calls_it(serve: Serve, keep: Callable[[Any], Any], tmp_path: Path) -> None:
    s = step(1)
    for k, source in enumerate(s["ref_images"]):
        source.save(tmp_path / f"{k}.png")
    metadata = [{"prompt": "red", "image": f"{k}.png"} for k in range(N)]
    function = keep(jrm_score(serve().url, source_key="image", source_root=tmp_path))
    scores, details = function(s["images"], s["prompts"], metadata)
    assert (scores, details) == (expected(s["images"]), {})
    assert type(scores) is list


def test_the_source_of_each_edit_is_its_own(serve: Serve, keep: Callable[[Any], Any]) -> None:
    server = serve()
    sources = [b"S0", b"S1", b"S0", b"S2"]
    keep(jrm_score(server.url))([b"A", b"B", b"C", b"D"], ["red"] * 4, {}, sources)
    [request] = server.requests
    pairs = {
        (request.images[group["source"]], request.images[edit])
        for group in request.json["groups"]
        for edit in group["edits"]
    }
    assert pairs == {(b"S0", b"A"), (b"S1", b"B"), (b"S0", b"C"), (b"S2", b"D")}


@pytest.mark.parametrize("convert", [lambda x: x, lambda x: x.numpy(), lambda x: list(x), lambda x: x.bfloat16()])
def test_float_batches(serve: Serve, keep: Callable[[Any], Any], convert: Callable[[Any], Any]) -> None:
    s = step(2)
    images = convert(s["images"])
    scores, _ = keep(jrm_score(serve().url))(images, s["prompts"], s["metadata"], s["ref_images"])
    assert scores == expected(images)


@pytest.mark.parametrize("convert", [lambda x: x, torch.from_numpy])
def test_uint8_batches(serve: Serve, keep: Callable[[Any], Any], convert: Callable[[Any], Any]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (N, 16, 12, 3), dtype=np.uint8)
    scores, _ = keep(jrm_score(serve().url))(convert(images), ["red"] * N, None, [b"S"] * N)
    assert scores == expected(images)


def test_sources_as_a_batch(serve: Serve, keep: Callable[[Any], Any]) -> None:
    server = serve()
    s = step(3)
    keep(jrm_score(server.url))(s["images"], s["prompts"], s["metadata"], s["images"])
    assert len(server.requests[0].images) == N


def test_source_key_wins_over_ref_images(serve: Serve, keep: Callable[[Any], Any]) -> None:
    server = serve()
    keep(jrm_score(server.url, source_key="src"))([b"A"], ["red"], [{"src": b"METADATA"}], [b"REFERENCE"])
    assert b"METADATA" in server.requests[0].images.values()
    assert b"REFERENCE" not in server.requests[0].images.values()


def test_a_text_to_image_trainer_passes_no_source(serve: Serve, keep: Callable[[Any], Any]) -> None:
    server = serve()
    s = step(4)
    rewards, _ = keep(jrm_reward(server.url))(s["images"], s["prompts"], s["metadata"], only_strict=False)
    assert rewards["avg"] == expected(s["images"])
    assert [("source" in group, len(group["edits"])) for group in server.requests[0].json["groups"]] == [(False, N)]


def test_a_checkpoint_that_wants_sources_names_the_remedy(serve: Serve, keep: Callable[[Any], Any]) -> None:
    error = {
        "message": "groups[0].source: the checkpoint 'jrm' takes one source image, got none",
        "code": "invalid_request",
    }
    refused = Reply(400, {"error": error | {"type": "invalid_request_error", "param": "groups[0].source"}})
    with pytest.raises(
        ValueError, match=r"no source images: pass ref_images, or name .* source_key: .*checkpoint 'jrm'"
    ):
        keep(jrm_reward(serve(refused).url, on_error="nan"))([b"A"], ["red"], [{}])
    with pytest.raises(APIStatusError):  # it was given sources, so that is not the remedy
        keep(jrm_reward(serve(refused).url))([b"A"], ["red"], [{}], [b"S"])


def test_an_edit_may_have_several_sources(serve: Serve, keep: Callable[[Any], Any], tmp_path: Path) -> None:
    server = serve()
    for name in ("s.png", "t.png"):
        (tmp_path / name).write_bytes(name.encode())
    keep(jrm_score(server.url))([b"A", b"B"], ["red"] * 2, None, [[b"S", b"T"], (b"S",)])
    from_metadata = keep(jrm_score(server.url, source_key="src", source_root=tmp_path))
    from_metadata([b"A"], ["red"], [{"src": ["s.png", "t.png"]}])
    sent = [
        [request.images[name] for name in ([source] if isinstance(source, str) else source)]
        for request in server.requests
        for source in (group["source"] for group in request.json["groups"])
    ]
    assert sent == [[b"S", b"T"], [b"S"], [b"s.png", b"t.png"]]


def test_an_empty_batch(serve: Serve, keep: Callable[[Any], Any]) -> None:
    reward = keep(jrm_reward(serve().url, dimensions=["visual_quality"]))
    assert reward(torch.zeros(0, 3, 8, 8), [], [], []) == ({"avg": [], "visual_quality": []}, {})


WRONG: dict[str, tuple[tuple[Any, ...], type[Exception], str]] = {
    "prompts": (([b"A"], ["red", "blue"], [{}], [b"S"]), ValueError, "prompts: 2 for 1 images"),
    "one prompt": (([b"A", b"B", b"C"], "red", None, [b"S"]), TypeError, "prompts: a single str"),
    "metadata": (([b"A"], ["red"], [{}, {}], [b"S"]), ValueError, "metadata: 2 for 1 images"),
    "ref_images": (([b"A"], ["red"], [{}], [b"S", b"T"]), ValueError, "ref_images: 2 for 1 images"),
    "one image": ((torch.zeros(3, 8, 8), ["red"], [{}], [b"S"]), ValueError, r"images: shape \(3, 8, 8\)"),
    "NHWC floats": ((torch.zeros(1, 8, 8, 3), ["red"], [{}], [b"S"]), ValueError, "HWC"),
    "one source": (([b"A"], ["red"], [{}], Image.new("RGB", (8, 8))), TypeError, "ref_images: Image"),
    "NaN": ((torch.full((1, 3, 8, 8), torch.nan), ["red"], [{}], [b"S"]), ValueError, "NaN"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_batches(serve: Serve, keep: Callable[[Any], Any], what: str) -> None:
    server = serve()
    arguments, error, message = WRONG[what]
    with pytest.raises(error, match=message):
        keep(jrm_reward(server.url))(*arguments)
    assert server.requests == []


@pytest.mark.parametrize("metadata", [[{"other": 1}], [{"src": None}], ["src"]])
def test_a_missing_source_names_the_row(serve: Serve, keep: Callable[[Any], Any], metadata: Any) -> None:
    with pytest.raises(ValueError, match=r"metadata\[0\]: no source image under the key 'src'"):
        keep(jrm_score(serve().url, source_key="src"))([b"A"], ["red"], metadata)


@pytest.mark.parametrize("metadata", [None, {}, []])
def test_metadata_without_rows(serve: Serve, keep: Callable[[Any], Any], metadata: Any) -> None:
    with pytest.raises(ValueError, match="metadata"):
        keep(jrm_score(serve().url, source_key="src"))([b"A"], ["red"], metadata)


@pytest.mark.parametrize("make", [jrm_score, jrm_reward])
def test_standard_deviations_are_taken_off_the_reward(serve: Serve, keep: Callable[[Any], Any], make: Any) -> None:
    rewards, _ = keep(make(serve().url, std_penalty=2, on_error="nan"))([b"A", b"BAD"], ["red"] * 2, None, [b"S"] * 2)
    values = rewards if make is jrm_score else rewards["avg"]
    assert values[0] == pytest.approx(reward_of(b"A") - 2 * 0.25)
    assert math.isnan(values[1])
    if make is jrm_reward:
        assert rewards["visual_quality"][0] == pytest.approx(reward_of(b"A") - 1)  # dimensions are means as before


def test_a_checkpoint_without_standard_deviations_has_none_to_take_off(
    serve: Serve, keep: Callable[[Any], Any]
) -> None:
    def mean_only(request: Any) -> Reply:
        entry = score_entry(0, b"A") | {"reward_std": None}
        entry["dimensions"] = {"quality": {"mean": 1.0, "std": None}}
        return scores([[entry]])

    with pytest.raises(ValueError, match="scripted gives no standard deviations"):
        keep(jrm_reward(serve(mean_only).url, std_penalty=1))([b"A"], ["red"], None, [b"S"])


@pytest.mark.parametrize(("penalty", "error"), [(-1, ValueError), (math.nan, ValueError), ("1", TypeError)])
def test_a_penalty_is_a_number_of_standard_deviations(penalty: Any, error: Any) -> None:
    with pytest.raises(error, match="std_penalty"):
        jrm_reward("http://127.0.0.1:1", std_penalty=penalty)


def test_a_failed_edit_raises(serve: Serve, keep: Callable[[Any], Any]) -> None:
    with pytest.raises(ScoreError) as caught:
        keep(jrm_score(serve().url))([b"A", b"BAD"], ["red"] * 2, None, [b"S"] * 2)
    assert list(caught.value.failed) == [1]


def test_a_failed_edit_is_nan_on_request(serve: Serve, keep: Callable[[Any], Any]) -> None:
    reward = keep(jrm_reward(serve().url, on_error="nan"))
    rewards, _ = reward([b"A", b"BAD"], ["red"] * 2, None, [b"S"] * 2)
    assert rewards["avg"][0] == reward_of(b"A")
    assert all(math.isnan(values[1]) for values in rewards.values())


def test_the_keys_stay_when_every_edit_of_a_batch_failed(serve: Serve, keep: Callable[[Any], Any]) -> None:
    reward = keep(jrm_reward(serve().url, on_error="nan"))
    first, _ = reward([b"A"], ["red"], None, [b"S"])
    second, _ = reward([b"BAD"], ["red"], None, [b"S"])
    assert list(second) == list(first)
    assert all(math.isnan(value) for values in second.values() for value in values)


def test_keys_that_nobody_knows_yet_are_an_error(serve: Serve, keep: Callable[[Any], Any]) -> None:
    server = serve()
    with pytest.raises(ScoreError):
        keep(jrm_reward(server.url, on_error="nan"))([b"BAD"], ["red"], None, [b"S"])
    given = keep(jrm_reward(server.url, on_error="nan", dimensions=["visual_quality"]))
    assert list(given([b"BAD"], ["red"], None, [b"S"])[0]) == ["avg", "visual_quality"]


def test_a_server_that_refuses_always_raises(serve: Serve, keep: Callable[[Any], Any]) -> None:
    with pytest.raises(APIStatusError):
        keep(jrm_reward(serve(refusal(401, "unauthorized")).url, on_error="nan"))([b"A"], ["red"], None, [b"S"])


def test_an_unknown_dimension(serve: Serve, keep: Callable[[Any], Any]) -> None:
    with pytest.raises(KeyError, match="beauty"):
        keep(jrm_reward(serve().url, dimensions=["beauty"]))([b"A"], ["red"], None, [b"S"])


@pytest.mark.parametrize("make", [jrm_score, jrm_reward])
def test_pickled(serve: Serve, keep: Callable[[Any], Any], make: Callable[..., Any]) -> None:
    function = keep(make(serve().url, api_key="sk-1"))
    call = ([b"A"], ["red"], None, [b"S"])
    assert keep(pickle.loads(pickle.dumps(function)))(*call) == function(*call)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_forked(serve: Serve, keep: Callable[[Any], Any]) -> None:
    function = keep(jrm_score(serve().url))
    call = ([b"A"], ["red"], None, [b"S"])
    expected_scores = function(*call)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if function(*call) == expected_scores else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert function(*call) == expected_scores
