"""verl's own reward manager calls our `compute_score`, found by the name that its configuration gives."""

import asyncio

import numpy
import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoTokenizer
from verl import DataProto
from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager
from verl.trainer.ppo.reward import get_custom_reward_fn

from jrm_client import APIConnectionError, JRMClient, ScoreError
from trainers import tiny_policy
from trainers.reward_server import BROKEN, EDITS, INSTRUCTION, SOURCE


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return AutoTokenizer.from_pretrained(tiny_policy.write(tmp_path_factory.mktemp("policy")))


def picture(completion: str):
    """What the completion asks for: the number of an edit."""
    return {str(number): edit for number, edit in enumerate([*EDITS, BROKEN])}[completion]


def rewards(tokenizer, completions, **settings):
    """The replies of the reward manager, all samples at once, as in a reward worker."""
    function = {"path": "pkg://jrm_client.trainers.verl", "name": "compute_score", "reward_kwargs": settings}
    config = OmegaConf.create({"reward": {"custom_reward_function": function}})

    async def score():
        manager = NaiveRewardManager(config, tokenizer, get_custom_reward_fn(config))
        return await asyncio.gather(*(manager.run_single(sample(tokenizer, text)) for text in completions))

    return asyncio.run(score())


def sample(tokenizer, completion):
    response = tokenizer(completion, return_tensors="pt")["input_ids"]
    extra_info = {"image": SOURCE.name, "index": 0}
    others = {
        "data_source": "image_edit",
        "reward_model": {"style": "model", "ground_truth": INSTRUCTION},
        "extra_info": extra_info,
    }
    return DataProto.from_dict(
        {"responses": response, "attention_mask": torch.ones(1, 3 + response.shape[1], dtype=torch.long)},
        non_tensors={name: numpy.array([value], dtype=object) for name, value in others.items()},
    )


def test_the_reward_is_that_of_each_picture(server, tokenizer):
    settings = {"server_url": server.url, "edited": f"{__name__}:picture", "source_root": str(SOURCE.parent)}
    replies = rewards(tokenizer, ["0", "1", "2", "3"], **settings)
    with JRMClient(server.url) as client:
        group = client.score_group(SOURCE, INSTRUCTION, EDITS)
    assert [reply["reward_score"] for reply in replies] == pytest.approx(group.rewards.tolist(), abs=1e-5)
    assert replies[0]["reward_extra_info"]["visual_quality"] == pytest.approx(
        float(group.dimension("visual_quality")[0]), abs=1e-5
    )


def test_the_environment_is_enough(server, tokenizer, monkeypatch):
    for name, value in {"URL": server.url, "EDITED": f"{__name__}:picture", "SOURCE_ROOT": str(SOURCE.parent)}.items():
        monkeypatch.setenv(f"JRM_{name}", value)
    assert len(rewards(tokenizer, ["0", "1"])) == 2


def test_a_failed_candidate_ends_the_run(server, tokenizer):
    settings = {"server_url": server.url, "edited": f"{__name__}:picture", "source_root": str(SOURCE.parent)}
    with pytest.raises(ScoreError, match="invalid_image"):
        rewards(tokenizer, ["0", "4"], **settings)


def test_no_server_ends_the_run(tokenizer):
    settings = {"edited": f"{__name__}:picture", "source_root": str(SOURCE.parent), "timeout": 3}
    with pytest.raises(APIConnectionError, match=r"127\.0\.0\.1:9"):
        rewards(tokenizer, ["0"], server_url="http://127.0.0.1:9", **settings)
