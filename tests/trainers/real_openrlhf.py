"""OpenRLHF's own executor loads our reward file and calls it after a completion. Its vLLM is a named fake."""

import asyncio
import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
from openrlhf.utils.agent import SingleTurnAgentExecutor
from transformers import AutoTokenizer

from jrm_client import JRMClient
from trainers import tiny_policy
from trainers.reward_server import EDITS, INSTRUCTION, SOURCE

PLUGIN = Path(__file__).parents[2] / "client" / "jrm_client" / "trainers" / "openrlhf.py"
LABEL = json.dumps({"source": str(SOURCE), "instruction": INSTRUCTION})


class Engine:
    """Completes every prompt with the same text."""

    def __init__(self, tokenizer, completion):
        self.tokens = tokenizer(completion)["input_ids"]

    async def generate(self, prompt_token_ids, sampling_params, multi_modal_data=None):
        output = SimpleNamespace(token_ids=self.tokens, text="", finish_reason="stop", logprobs=None)
        return SimpleNamespace(outputs=[output])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return AutoTokenizer.from_pretrained(tiny_policy.write(tmp_path_factory.mktemp("policy")))


@pytest.fixture
def configured(server, monkeypatch):
    monkeypatch.setenv("JRM_URL", server.url)
    monkeypatch.setenv("JRM_EDITED", f"{__name__}:picture")


def picture(completion: str):
    """What the completion asks for: the number of an edit."""
    return EDITS[int(completion.removesuffix("<|im_end|>"))]


def execute(tokenizer, completion, label=LABEL):
    executor = SingleTurnAgentExecutor(str(PLUGIN))
    sampling = SimpleNamespace(max_tokens=8, logprobs=None)
    engine = Engine(tokenizer, completion)
    return asyncio.run(executor.execute("draw: ", label, sampling, 64, tokenizer, engine))


def test_the_reward_is_that_of_each_picture(server, tokenizer, configured):
    with JRMClient(server.url) as client:
        group = client.score_group(SOURCE, INSTRUCTION, EDITS)
    for number, score in enumerate(group):
        output = execute(tokenizer, f"{number}<|im_end|>")
        assert output["reward"].tolist() == pytest.approx([score.reward], abs=1e-5)
        assert output["scores"].tolist() == output["reward"].tolist()
        dimension = output["extra_logs"]["visual_quality"].tolist()
        assert dimension == pytest.approx([score.dimensions["visual_quality"].mean], abs=1e-5)


def test_a_failure_is_no_reward_and_a_line_in_the_log(tokenizer, configured, caplog):
    logging.getLogger("openrlhf.utils.agent").addHandler(caplog.handler)
    output = execute(tokenizer, "0", label="no object")
    assert output["reward"] is None
    assert "labels[0]: expected a JSON object" in caplog.text
