"""TRL's own GRPOTrainer takes steps on rewards of a running server."""

import math
import re
from pathlib import Path

import datasets
import pandas
import pytest
from trl import GRPOConfig, GRPOTrainer

from jrm_client import APIConnectionError, JRMClient
from jrm_client.trainers.trl import async_jrm_reward, jrm_reward
from trainers import tiny_policy
from trainers.reward_server import BROKEN, EDITS, INSTRUCTION, SOURCE, serving

ROOT = Path(__file__).parents[2]


class Draw:
    """Gives completions the next of ``pictures``, whatever they say: a tiny random policy has nothing to say."""

    def __init__(self, *pictures):
        self.pictures, self.completions = pictures, []

    def __call__(self, completion):
        self.completions.append(completion)
        return self.pictures[(len(self.completions) - 1) % len(self.pictures)]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return str(tiny_policy.write(tmp_path_factory.mktemp("policy")))


@pytest.fixture(scope="module")
def expected(server):
    with JRMClient(server.url) as client:
        return client.score_group(SOURCE, INSTRUCTION, EDITS).rewards.tolist()


def dataset(prompt="draw"):
    rows = {"prompt": [prompt] * 4, "instruction": [INSTRUCTION] * 4, "source": [str(SOURCE)] * 4}
    return datasets.Dataset.from_dict(rows).cast_column("source", datasets.Image())


def trainer(policy, folder, *rewards, prompt="draw"):
    config = GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=4,
        max_steps=2,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        log_completions=True,
        use_cpu=True,
        seed=1,
    )
    return GRPOTrainer(model=policy, reward_funcs=list(rewards), args=config, train_dataset=dataset(prompt))


def steps(folder):
    """What TRL writes down of each step, as tables."""
    return [pandas.read_parquet(path) for path in sorted((folder / "completions").glob("*.parquet"))]


@pytest.mark.parametrize("make", [jrm_reward, async_jrm_reward])
def test_the_reward_is_that_of_each_picture(server, policy, expected, tmp_path, make):
    draw = Draw(*EDITS)
    run = trainer(policy, tmp_path, make(server.url, edited=draw))
    run.train()
    [name] = run.reward_func_names
    assert len(draw.completions) == 8
    assert all(isinstance(completion, str) for completion in draw.completions)
    for step in steps(tmp_path):
        assert step[name].tolist() == pytest.approx(expected, abs=1e-5)
        assert len(set(step["advantage"])) == 4
    logged = run.state.log_history[0]
    assert logged[f"rewards/{name}/mean"] == pytest.approx(sum(expected) / 4, abs=1e-5)
    assert logged["jrm/without_reward"] == 0
    assert {"jrm/instruction_following", "jrm/visual_quality"} <= set(logged)


def test_the_edits_may_be_a_column_and_the_prompt_a_conversation(server, policy, expected, tmp_path):
    def edits(prompts, completions, **columns):
        return score(prompts=prompts, completions=completions, edits=EDITS, **columns)

    score = jrm_reward(server.url, edited="edits", instruction="prompt")
    run = trainer(policy, tmp_path, edits, prompt=[{"role": "user", "content": INSTRUCTION}])
    run.train()
    assert steps(tmp_path)[0]["edits"].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("make", [jrm_reward, async_jrm_reward])
def test_a_failed_candidate_has_no_reward_and_no_advantage(server, policy, expected, tmp_path, make):
    run = trainer(policy, tmp_path, make(server.url, edited=Draw(EDITS[0], BROKEN, EDITS[2], None)))
    run.train()
    [name] = run.reward_func_names
    for step in steps(tmp_path):
        rewards, advantages = step[name].tolist(), step["advantage"].tolist()
        assert [rewards[0], rewards[2]] == pytest.approx([expected[0], expected[2]], abs=1e-5)
        assert math.isnan(rewards[1])
        assert math.isnan(rewards[3])
        assert advantages[1] == advantages[3] == 0
        assert advantages[0] == pytest.approx(-advantages[2])  # the others are compared with each other alone
        assert abs(advantages[0]) > 0.5
        assert "invalid_image" in step["jrm/error"][1]
        assert step["jrm/error"].tolist()[::3] == ["", "no picture"]
    assert run.state.log_history[0]["jrm/without_reward"] == 0.5


def test_a_step_in_which_all_failed_trains_nothing(server, policy, tmp_path):
    run = trainer(policy, tmp_path, jrm_reward(server.url, edited=Draw(BROKEN)))
    before = [parameter.clone() for parameter in run.model.parameters()]
    run.train()
    assert all((old == new).all() for old, new in zip(before, run.model.parameters(), strict=True))
    assert run.state.log_history[0]["reward"] is None
    assert run.state.log_history[0]["jrm/without_reward"] == 1


def test_beside_another_reward_none_is_left_out_of_the_sum(server, policy, expected, tmp_path):
    def ten(prompts, completions, **columns):
        return [10.0] * len(completions)

    run = trainer(policy, tmp_path, ten, jrm_reward(server.url, edited=Draw(*EDITS[:3], BROKEN)))
    run.train()
    mean = (sum(expected[:3]) + 40) / 4  # the fourth is 10: as if its reward were 0
    assert run.state.log_history[0]["reward"] == pytest.approx(mean, abs=1e-5)


def test_the_complete_run_of_the_documentation(server, policy, tmp_path, monkeypatch):
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "trainers" / "trl.md").read_text(), re.M | re.S)
    [program] = [block for block in blocks if "trainer.train()" in block]
    for written, meant in {
        "http://127.0.0.1:8000": server.url,
        "Qwen/Qwen3-0.6B": policy,
        "out/trl": str(tmp_path),
    }.items():
        assert program.count(written) == 1
        program = program.replace(written, meant)
    monkeypatch.chdir(ROOT)
    names = {"__name__": "__main__"}
    exec(compile(program, "trl.md", "exec"), names)
    for step in names["trainer"].state.log_history[:2]:
        assert step["jrm/without_reward"] == 0
        assert math.isfinite(step["rewards/jrm/mean"])


def test_on_error_raise_ends_the_run(server, policy, tmp_path):
    run = trainer(policy, tmp_path, jrm_reward(server.url, edited=Draw(EDITS[0], BROKEN), on_error="raise"))
    with pytest.raises(Exception, match=r"2 of 4 candidates have no score.*invalid_image"):
        run.train()


def test_edited_that_was_not_given_ends_the_first_step(server, policy, tmp_path):
    with pytest.raises(ValueError, match="edited: not given"):
        trainer(policy, tmp_path, jrm_reward(server.url)).train()


@pytest.mark.parametrize("make", [jrm_reward, async_jrm_reward])
def test_a_server_that_died_ends_the_run(policy, tmp_path, make):
    with serving() as mortal:
        reward = make(mortal.url, edited=Draw(*EDITS), timeout=10, max_retries=1)
        run = trainer(policy, tmp_path, reward)
        run.train()
        mortal.kill()
        with pytest.raises(APIConnectionError, match=mortal.url):
            trainer(policy, tmp_path, reward).train()
