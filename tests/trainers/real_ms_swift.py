"""`swift rlhf`, with our plugin file, takes steps on rewards of a running server."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jrm_client import JRMClient
from trainers import tiny_policy
from trainers.reward_server import EDITS, INSTRUCTION, SOURCE

TESTS = Path(__file__).parents[1]
PLUGIN = TESTS.parent / "client" / "jrm_client" / "trainers" / "ms_swift.py"
SWIFT = Path(sys.executable).with_name("swift")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A policy and a data set."""
    folder = tmp_path_factory.mktemp("swift")
    tiny_policy.write(folder / "policy")
    question = {"role": "user", "content": INSTRUCTION}
    row = {"messages": [question], "source": str(SOURCE), "instruction": INSTRUCTION}
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for _ in range(4)))
    return folder


def run(folder, out, **variables):
    """(exit status, what was printed) of two steps with one group of four completions each."""
    command = (
        f"rlhf --rlhf_type grpo --model {folder}/policy --model_type qwen2 --template dummy --tuner_type full "
        f"--dataset {folder}/rows.jsonl --external_plugins {PLUGIN} --reward_funcs jrm --output_dir {out} "
        "--torch_dtype float32 --num_generations 4 --per_device_train_batch_size 4 --max_completion_length 4 "
        "--max_steps 2 --logging_steps 1 --save_strategy no --log_completions true --report_to none --use_hf true"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("JRM_")}
    environment = clean | {"PYTHONPATH": str(TESTS), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""} | variables
    done = subprocess.run(
        [SWIFT, *command.split()], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return done.returncode, done.stdout


def test_the_reward_is_that_of_each_picture(server, folder, tmp_path):
    status, printed = run(folder, tmp_path, JRM_URL=server.url, JRM_EDITED="trainers.drawing:draw")
    assert status == 0, printed
    with JRMClient(server.url) as client:
        expected = client.score_group(SOURCE, INSTRUCTION, EDITS).rewards.tolist()
    [log] = tmp_path.glob("*/completions.jsonl")
    steps = [json.loads(line) for line in log.read_text().splitlines()]
    assert [set(step["step"]) for step in steps[:2]] == [{"1"}, {"2"}]
    for step in steps:
        assert step["JRM"] == pytest.approx(expected, abs=1e-5)
        assert len(set(step["advantages"])) == 4


def test_a_failed_candidate_ends_the_run(server, folder, tmp_path):
    status, printed = run(folder, tmp_path, JRM_URL=server.url, JRM_EDITED="trainers.drawing:draw_one_broken")
    assert status != 0
    assert "ScoreError: 1 of 4 candidates have no score" in printed
    assert "invalid_image" in printed


def test_a_completion_without_a_picture_ends_the_run(server, folder, tmp_path):
    status, printed = run(folder, tmp_path, JRM_URL=server.url, JRM_EDITED="trainers.drawing:nothing")
    assert status != 0
    assert "completions[0]: edited gave None" in printed


def test_edited_that_was_not_given_ends_the_first_step(server, folder, tmp_path):
    status, printed = run(folder, tmp_path, JRM_URL=server.url)
    assert status != 0
    assert "edited: not given" in printed


def test_no_server_ends_the_run(folder, tmp_path):
    status, printed = run(
        folder, tmp_path, JRM_URL="http://127.0.0.1:9", JRM_EDITED="trainers.drawing:draw", JRM_TIMEOUT="3"
    )
    assert status != 0
    assert "http://127.0.0.1:9" in printed
    assert "APIConnectionError" in printed
