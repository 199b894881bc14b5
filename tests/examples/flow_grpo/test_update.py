"""What a trainer learns from rewards, without a service: advantages, the clipped loss, an update; a run's folder."""

import json
import math

import pytest
import torch
import torch.distributed as dist
from examples.flow_grpo.editor import Editor, save, split
from examples.flow_grpo.grpo import GROUP, Batch, Settings, Trainer, advantages, clipped_loss, shuffle
from examples.flow_grpo.state import RunFolder, read_log

from examples.flow_grpo import flow, tasks


def test_advantages_are_relative_to_the_group_and_an_edit_without_a_reward_takes_no_part():
    rewards = torch.tensor([[1.0, 2.0, 3.0, math.nan], [5.0, 5.0, 5.0, 5.0], [math.nan] * 4])
    found = advantages(rewards)
    torch.testing.assert_close(found[0], torch.tensor([-1.0, 0.0, 1.0, 0.0]), atol=1e-3, rtol=0)
    assert not found[1].any()
    assert not found[2].any()


def test_shuffled_rewards_are_the_same_ones_elsewhere():
    rewards = torch.arange(96.0).reshape(8, GROUP)
    mixed = shuffle(rewards, 3)
    assert torch.equal(mixed, shuffle(rewards, 3))
    assert torch.equal(mixed.flatten().sort().values, rewards.flatten())
    assert (mixed == rewards).float().mean() < 0.1


@pytest.mark.parametrize(
    ("ratio", "advantage", "slope"),
    [
        (1.0, 1.0, -1.0),  # a good edit becomes likelier
        (1.0, -1.0, 1.0),
        (1.001, 1.0, 0.0),  # enough of that
        (0.999, -1.0, 0.0),
        (0.999, 1.0, -1.0),  # went the wrong way: brought back
        (1.001, -1.0, 1.0),
    ],
)
def test_the_loss_is_clipped_where_an_edit_has_gone_far_enough(ratio, advantage, slope):
    at = torch.tensor([ratio], requires_grad=True)
    loss, outside = clipped_loss(at, torch.tensor([advantage]), 1e-4, 5e-4)
    loss.backward()
    assert at.grad.item() == slope
    assert outside.item() == (ratio != 1)


def test_the_penalty_is_the_distance_over_twice_the_squared_diffusion():
    t = float(flow.times()[2])
    expected = 0.1**2 / (2 * 0.9**2 * t / (1 - t))
    mean = torch.zeros(2, 3, 4, 4)
    assert flow.penalty(mean + 0.1, mean, 2).item() == pytest.approx(expected, rel=1e-5)


@pytest.fixture
def trainer(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    torch.manual_seed(0)
    task = tasks.task(tasks.TRAINING, 0)
    editor = Editor(split(task.instruction))
    for parameter in editor.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    save(editor, tmp_path / "editor.safetensors")
    settings = Settings(prompts=1, updates=1, learning_rate=1e-5, clip_low=0.1, clip_high=0.1)
    made = Trainer("http://127.0.0.1:1", tmp_path / "editor.safetensors", tmp_path / "run", settings)
    yield made
    made.close()
    dist.destroy_process_group()


def test_an_update_makes_good_edits_likelier_than_bad_ones(trainer):
    task = tasks.task(tasks.TRAINING, 0)
    source = torch.zeros(2, 3, 64, 64)
    words = trainer.editor.read([task.instruction] * 2)
    samples = flow.sample(
        trainer.editor, source, words, torch.Generator().manual_seed(0), random_steps=flow.RANDOM_STEPS
    )
    figures = trainer._update([Batch(task, source, words, samples)], torch.tensor([[1.0, -1.0]]))
    assert figures["kl"] == pytest.approx(0, abs=1e-9)  # before the first update it is the reference itself
    assert figures["gradient_norm"] > 0
    gains = []
    with torch.no_grad():
        for step in range(flow.RANDOM_STEPS):
            meaning = trainer.editor.understand(words)
            mean, deviation = flow.policy_step(trainer.editor, samples.states[step], step, source, meaning)
            gains.append(flow.log_prob(samples.states[step + 1], mean, deviation) - samples.log_probs[:, step])
    good, bad = torch.stack(gains).sum(0)
    assert good > bad


def test_the_kept_editor_is_an_average_of_the_last_ones(trainer):
    task = tasks.task(tasks.TRAINING, 0)
    words = trainer.editor.read([task.instruction])
    samples = flow.sample(
        trainer.editor,
        torch.zeros(1, 3, 64, 64),
        words,
        torch.Generator().manual_seed(0),
        random_steps=flow.RANDOM_STEPS,
    )
    before = trainer.average.join.weight.detach().clone()
    trainer._update([Batch(task, torch.zeros(1, 3, 64, 64), words, samples)], torch.tensor([[1.0]]))
    expected = before.lerp(trainer.editor.join.weight.detach(), 1 - trainer.settings.ema)
    torch.testing.assert_close(trainer.average.join.weight.detach(), expected)
    assert not torch.equal(before, expected)


def test_a_log_that_is_ahead_of_the_state_or_torn_is_cut(tmp_path):
    folder = RunFolder(tmp_path / "run")
    for step in range(4):
        folder.add({"step": step})
    with (folder.path / "log.jsonl").open("a") as log:
        log.write('{"step": 4, "rew')
    assert [row["step"] for row in read_log(folder.path)] == [0, 1, 2, 3]
    folder.begin(2)
    folder.add({"step": 2})
    assert [json.loads(line)["step"] for line in (folder.path / "log.jsonl").read_text().splitlines()] == [0, 1, 2]
    folder.begin(0)
    assert read_log(folder.path) == []
    folder.close()


def test_two_runs_do_not_write_one_folder(tmp_path):
    held = RunFolder(tmp_path)
    with pytest.raises(RuntimeError, match="another run writes there"):
        RunFolder(tmp_path)
    held.close()
    RunFolder(tmp_path).close()


def test_tasks_must_be_shared_by_the_updates():
    with pytest.raises(ValueError, match="8 tasks cannot be shared by 3 updates"):
        Settings(updates=3)
