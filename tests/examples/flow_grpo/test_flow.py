"""The SDE has the marginals of the ODE, and its likelihoods are those of its steps."""

import math

import pytest
import torch
from examples.flow_grpo.editor import Editor, load, save
from torch.distributions import Normal

from examples.flow_grpo import flow

WORDS = ["make", "the", "red", "circle", "blue"]


def gaussian_velocity(x, t, mean, std):
    """The velocity of data N(mean, std^2), which is known: E[noise - x_0 | x_t]."""
    variance = ((1 - t) * std) ** 2 + t**2
    return -mean + (t - (1 - t) * std**2) / variance * (x - (1 - t) * mean)


@pytest.mark.parametrize("stochastic", [False, True])
def test_many_steps_end_in_the_data(stochastic):
    generator = torch.Generator().manual_seed(0)
    mean, std = 0.7, 0.4
    schedule = flow.times(400)
    x = torch.randn(20_000, generator=generator)
    for step in range(400):
        velocity = gaussian_velocity(x, schedule[step], mean, std)
        if stochastic and step < 399:
            middle, deviation = flow.sde_step(x, velocity, schedule, step)
            x = middle + deviation * torch.randn(x.shape, generator=generator)
        else:
            x = x + velocity * (schedule[step + 1] - schedule[step])
    assert x.mean().item() == pytest.approx(mean, abs=0.02)
    assert x.std().item() == pytest.approx(std, abs=0.02)


def test_a_step_is_the_equation_of_the_paper():
    schedule = flow.times(10)
    x, velocity = torch.tensor(0.3), torch.tensor(-0.5)
    t, after = float(schedule[4]), float(schedule[5])
    sigma = 0.9 * math.sqrt(t / (1 - t))
    expected = 0.3 + (-0.5 + sigma**2 / (2 * t) * (0.3 + (1 - t) * -0.5)) * (after - t)
    mean, deviation = flow.sde_step(x, velocity, schedule, 4)
    assert mean.item() == pytest.approx(expected, abs=1e-6)
    assert deviation == pytest.approx(sigma * math.sqrt(t - after))


def test_likelihoods_differ_as_those_of_the_normal_distribution_do():
    x = torch.randn(2, 3, 4, 4)
    mean, other = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    ours = flow.log_prob(x, mean, 0.3) - flow.log_prob(x, other, 0.3)
    normal = (Normal(mean, 0.3).log_prob(x) - Normal(other, 0.3).log_prob(x)).mean((1, 2, 3))
    torch.testing.assert_close(ours, normal)


def moved_editor():
    """An editor that has learned something, if nothing useful: a new one gives back the source."""
    torch.manual_seed(0)
    editor = Editor(WORDS)
    for parameter in editor.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return editor


def test_the_editor_that_sampled_finds_its_own_samples_as_likely_as_it_said():
    editor = moved_editor()
    source = torch.rand(3, 3, 64, 64) * 2 - 1
    words = editor.read(["make the red circle blue"] * 3)
    samples = flow.sample(editor, source, words, torch.Generator().manual_seed(1), random_steps=3)
    assert samples.pictures.abs().max() <= 1
    assert len(samples.states) == 4
    for step in range(3):
        mean, deviation = flow.policy_step(editor, samples.states[step], step, source, editor.understand(words))
        again = flow.log_prob(samples.states[step + 1], mean, deviation)
        torch.testing.assert_close(again, samples.log_probs[:, step], atol=1e-6, rtol=0)


def test_samples_depend_on_the_generator_alone():
    editor = moved_editor()
    source, words = torch.zeros(2, 3, 64, 64), editor.read(["make", "blue"])
    one, same, other = (
        flow.sample(editor, source, words, torch.Generator().manual_seed(seed), random_steps=2).pictures
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_an_editor_is_read_back_from_its_file(tmp_path):
    editor = Editor(WORDS)
    save(editor, tmp_path / "editor.safetensors", steps="3")
    again = load(tmp_path / "editor.safetensors")
    assert again.vocabulary == tuple(WORDS)
    for name, value in editor.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, atol=1e-3, rtol=1e-3)
    assert again.read(["make the unheard blue"]).tolist()[0][:5] == [2, 3, 1, 6, 0]


def test_a_new_editor_changes_nothing():
    """It predicts the source itself, so that an edit is what it has learned to add."""
    editor = Editor(WORDS)
    source = torch.rand(2, 3, 64, 64) * 2 - 1
    predicted = editor.predict(
        torch.randn(2, 3, 64, 64), torch.rand(2), source, editor.understand(editor.read(["a", "b"]))
    )
    torch.testing.assert_close(predicted, source)
