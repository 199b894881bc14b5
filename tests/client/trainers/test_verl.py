"""`compute_score` as the reward managers of verl-omni and verl call it."""

import asyncio
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.scripted_server import ScriptedServer, refusal, reward_of
from jrm_client import APIStatusError, ScoreError
from jrm_client.images import encode
from jrm_client.trainers.verl import compute_score

Serve = Callable[..., ScriptedServer]
EXTRA_INFO = {"split": "train", "index": 0, "instruction": "red", "image": "000001.png", "num_turns": None}


def picture(text: str) -> bytes | None:
    return text.encode() or None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "000001.png").write_bytes(b"S")
    return tmp_path


def test_it_is_what_the_managers_ask_for() -> None:
    assert inspect.iscoroutinefunction(compute_score)


def test_verl_omni(serve: Serve, folder: Path) -> None:
    server = serve()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    for solution in (image, image[None], image.numpy(), image.float() / 255):
        score = asyncio.run(
            compute_score(
                data_source="image_edit",
                solution_image=solution,
                ground_truth="make it red",
                extra_info=EXTRA_INFO,
                reward_router_address="localhost:1",
                reward_model_tokenizer=None,
                server_url=server.url,
                source_root=str(folder),
            )
        )
        reward = reward_of(encode(pixels, ""))
        assert score == {"score": reward, "instruction_following": reward + 1, "visual_quality": reward - 1}
        [group] = server.requests[-1].json["groups"]
        assert group["instruction"] == "make it red"
        assert server.requests[-1].images[group["source"]] == b"S"


def test_verl(serve: Serve, folder: Path) -> None:
    score = compute_score(
        data_source="image_edit",
        solution_str="A",
        ground_truth="",
        extra_info=EXTRA_INFO,
        server_url=serve().url,
        source_root=str(folder),
        instruction="instruction",
        edited=f"{__name__}:picture",
    )
    assert asyncio.run(score)["score"] == reward_of(b"A")


def test_all_samples_of_a_batch_at_once(serve: Serve, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"URL": serve().url, "SOURCE_ROOT": str(folder), "EDITED": f"{__name__}:picture"}.items():
        monkeypatch.setenv(f"JRM_{name}", value)

    async def batch() -> list[dict[str, float]]:
        texts = [str(number) for number in range(20)]
        samples = (
            compute_score(data_source="", solution_str=text, ground_truth="red", extra_info=EXTRA_INFO)
            for text in texts
        )
        return await asyncio.gather(*samples)

    for _ in range(2):  # on two event loops
        scores = asyncio.run(batch())
        assert [score["score"] for score in scores] == [reward_of(str(number).encode()) for number in range(20)]


def test_failures_raise(serve: Serve, folder: Path) -> None:
    def score(text: str, **settings: Any) -> Any:
        given = {"server_url": serve().url, "source_root": str(folder), "edited": picture} | settings
        return asyncio.run(
            compute_score(data_source="", solution_str=text, ground_truth="red", extra_info=EXTRA_INFO, **given)
        )

    with pytest.raises(ScoreError):
        score("BAD")
    with pytest.raises(ValueError, match="edited gave None"):
        score("")
    with pytest.raises(ValueError, match="edited: not given"):
        score("A", edited=None)
    with pytest.raises(ValueError, match='source: no column "picture"'):
        score("A", source="picture")
    with pytest.raises(ValueError, match="JRM_URL: not set"):
        score("A", server_url=None)
    with pytest.raises(APIStatusError):
        score("A", server_url=serve(refusal(401, "unauthorized")).url)


@pytest.mark.parametrize("shape", [(2, 3, 8, 6), (16, 8, 6), (8, 6)])
def test_what_is_no_picture(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"solution_image: shape .*; expected one picture, \[3, H, W\]"):
        asyncio.run(compute_score(solution_image=torch.zeros(shape), ground_truth="red", extra_info={"image": b"S"}))
