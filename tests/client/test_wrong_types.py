"""Every public function names the argument that it cannot use, before anything is sent."""

import asyncio
import copy
import inspect
import pickle
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any

import httpx
import numpy as np
import pytest

from client.scripted_server import ScriptedServer, reward_of
from jrm_client import (
    AsyncJRMClient,
    Backoff,
    Dimension,
    GroupScores,
    JRMClient,
    Score,
    flow_grpo,
    overlay,
    probability,
)

URL = "http://127.0.0.1:9"
SCORE = Score(1.0, 0.5, {"quality": Dimension(1.0, 0.5)}, False, "m", "f")
IMAGE, PAIRS = b"A", [(b"S", b"A", "red")]

# What stands for an argument that is fine, by its name; and what must be refused, with that name in the message.
GOOD: dict[str, Any] = {
    "base_url": URL,
    "url": URL,
    "source": IMAGE,
    "edited": IMAGE,
    "instruction": "red",
    "edits": [IMAGE],
    "pairs": PAIRS,
    "images": [IMAGE],
    "prompts": ["red"],
    "ref_images": [IMAGE],
    "i": 0,
    "j": 0,
    "name": "quality",
    "mean": 0.0,
    "std": 1.0,
    "mean_i": 0.0,
    "mean_j": 0.0,
    "std_i": 1.0,
    "std_j": 1.0,
    "region": 0,
    "regions": [],
    "checkpoint": "step-200",
}
NO_NUMBER: list[Any] = ["1", None, True, [1], {}, object(), 1j, b"1"]
NO_WHOLE: list[Any] = [*NO_NUMBER, 1.5, 2.0, float("nan"), np.float32(1)]
NO_TEXT: list[Any] = [None, 5, 1.5, True, b"red", ["red"], object(), float("nan")]
NO_IMAGE: list[Any] = [None, 5, True, [1], {}, object(), float("nan")]
NO_LIST: list[Any] = [None, 5, True, "red", b"red", {}, {"red"}, object(), float("nan")]
NO_ENUM: list[Any] = [None, 5, True, "other", [], np.zeros(3), object()]
NO_SECONDS: list[Any] = [*NO_NUMBER, 0, -1, float("nan"), float("inf"), np.float32("nan")]
BAD: dict[str, list[Any]] = {
    "base_url": [None, 5, True, b"http://a", [5], [None], {}, object(), "", [], "a", "http://a:0", "http://a:x"],
    "api_key": [5, True, b"key", ["key"], object(), "", "a b", "a\nb", "ä"],
    "timeout": NO_SECONDS,
    "max_retries": [*NO_WHOLE, -1],
    "max_concurrency": [*NO_WHOLE, 0],
    "backoff": [5, "1", True, {}, object()],
    "image_format": NO_ENUM,
    "pin_fingerprint": [None, 5, [], object(), "", " "],
    "on_error": NO_ENUM,
    "keep_images": [None, 0, 1, "yes", "False", [], np.True_],
    "source": [*NO_IMAGE, [], (), [None], [IMAGE, None], [[IMAGE]], [IMAGE, [IMAGE]], (5,)],
    "edited": NO_IMAGE,
    "instruction": [*NO_TEXT, "", " ", "\ud800"],
    "edits": [*NO_LIST, [None], [5], np.zeros((3, 8, 8))],
    "pairs": [*NO_LIST, [5], ["red"], [(IMAGE, IMAGE)], [(IMAGE, IMAGE, 5)], [(IMAGE, None, "x")], [{}]],
    "dimensions": [5, True, "quality", b"quality", {}, {"quality"}, [5], [None], [], object(), ["\ud800"]],
    "max_tokens": [*NO_WHOLE, 0, -1],
    "std_penalty": [*NO_NUMBER, -1.0, float("nan"), float("inf")],
    "source_key": [5, True, b"key", ["key"], object()],
    "source_root": [5, True, ["a"], object()],
    "distributed": ["yes", 5, 1.5],
    "images": [None, 5, True, "red", b"red", bytearray(b"red"), {}, np.zeros((3, 8, 8))],
    "prompts": [*NO_LIST, [5], [None], [""]],
    "ref_images": [5, True, "red", b"red", {}],
    "i": [*NO_WHOLE, 1, -2],
    "j": [*NO_WHOLE, 1, -2],
    "dimension": [5, True, [], object()],
    "name": [None, 5, [], object()],
    "mean": NO_NUMBER,
    "std": [*NO_NUMBER, -1.0],
    "mean_i": NO_NUMBER,
    "mean_j": NO_NUMBER,
    "std_i": [*(value for value in NO_NUMBER if value is not None), -1.0],
    "std_j": [*(value for value in NO_NUMBER if value is not None), -1.0],
    "region": NO_WHOLE,
    "regions": [*NO_LIST, [5], [None]],
    "first": [*NO_NUMBER, -1.0, float("nan"), float("inf")],
    "most": [*NO_NUMBER, -1.0, float("nan"), float("inf")],
    "uniform": [None, 5, "random"],
    "level": NO_ENUM,
    "load": NO_ENUM,
    "checkpoint": [*NO_TEXT, "\ud800"],
    "transport": [5, True, URL, [], object(), httpx.HTTPTransport()],
}
BAD["url"] = BAD["base_url"]
REQUIRED = {"edited", "instruction", "edits", "ref_images"}  # whatever their default
NOT_CHECKED = {
    "self",
    "only_strict",
    "metadata",
    "handle",
}  # has no effect; needs source_key; is Ray's
CALLED = {"url": "base_url"}  # what messages call it


def targets() -> dict[str, Callable[..., Any]]:
    client, remote = JRMClient(URL, max_retries=0), AsyncJRMClient(URL, max_retries=0)
    found: dict[str, Callable[..., Any]] = {
        "JRMClient": JRMClient,
        "AsyncJRMClient": AsyncJRMClient,
        "Backoff": Backoff,
        "jrm_score": flow_grpo.jrm_score,
        "jrm_reward": flow_grpo.jrm_reward,
        "jrm_score()": flow_grpo.jrm_score(URL, max_retries=0).__call__,
        "jrm_reward()": flow_grpo.jrm_reward(URL, max_retries=0).__call__,
        "GroupScores.win_probability": GroupScores((SCORE,)).win_probability,
        "GroupScores.dimension": GroupScores((SCORE,)).dimension,
        "win_probability": probability.win_probability,
        "expected_sigmoid": probability.expected_sigmoid,
        "color_of": overlay.color_of,
        "draw": overlay.draw,
    }
    for owner in (client, remote):
        for name, method in inspect.getmembers(owner, inspect.ismethod):
            if not name.startswith("_"):
                found[f"{type(owner).__name__}.{name}"] = method
    return found


def call(function: Callable[..., Any], arguments: dict[str, Any]) -> None:
    result = function(**arguments)
    if inspect.isasyncgen(result):
        asyncio.run(anext(result))  # type: ignore[arg-type]
    elif inspect.isgenerator(result):
        next(result)
    elif inspect.iscoroutine(result):
        asyncio.run(result)
    elif isinstance(result, AbstractContextManager):
        result.__enter__()
    elif isinstance(result, AbstractAsyncContextManager):
        asyncio.run(result.__aenter__())


def test_every_argument_of_every_function_is_named_when_it_is_wrong() -> None:
    tried = 0
    for what, function in targets().items():
        parameters = {
            name: parameter
            for name, parameter in inspect.signature(function).parameters.items()
            if name not in NOT_CHECKED and parameter.kind is not inspect.Parameter.VAR_KEYWORD
        }
        required = {
            name: GOOD[name]
            for name, parameter in parameters.items()
            if parameter.default is inspect.Parameter.empty or name in REQUIRED
        }
        for name, parameter in parameters.items():
            for value in BAD[name]:
                optional = parameter.default is None and name not in REQUIRED - {"ref_images"}
                if (value is None and optional) or (what == "draw" and name == "edited" and value == {}):
                    continue
                named = "dimension" if what == "GroupScores.dimension" else CALLED.get(name, name)
                tried += 1
                try:
                    call(function, {**required, name: value})
                except (TypeError, ValueError, IndexError) as error:
                    assert named in str(error), f"{what}({name}={value!r}): {error}"  # noqa: PT017
                else:
                    pytest.fail(f"{what}({name}={value!r}) was accepted")
    assert tried > 500


def test_numbers_of_numpy_are_numbers() -> None:
    with JRMClient(
        URL, timeout=np.float32(3), max_retries=np.int64(0), max_concurrency=np.uint8(2), backoff=Backoff(np.float64(1))
    ) as client:
        assert "127.0.0.1" in repr(client)
    assert probability.win_probability(np.float32(1), np.float64(0.5), np.int64(1), np.float16(0.5)) == 0.5
    assert GroupScores((SCORE,)).win_probability(np.int64(0), np.int8(-1)) == 0.5


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda client: pickle.loads(pickle.dumps(client))])
def test_clients_can_be_copied(copied: Callable[[Any], Any]) -> None:
    with ScriptedServer() as server:
        for pin in (False, True):
            with JRMClient(server.url, pin_fingerprint=pin) as client:
                client.score(b"S", b"A", "red")
                with copied(client) as other:
                    assert other.score(b"S", b"A", "red").reward == reward_of(b"A")
                    assert other.pinned_fingerprint == client.pinned_fingerprint
                assert client.score(b"S", b"A", "red").reward == reward_of(b"A")

        async def ask() -> float:
            async with AsyncJRMClient(server.url) as client:
                await client.score(b"S", b"A", "red")
                async with copied(client) as other:
                    return (await other.score(b"S", b"A", "red")).reward

        assert asyncio.run(ask()) == reward_of(b"A")
