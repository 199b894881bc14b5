"""Sampling a rectified flow, as an ODE or as the SDE that Flow-GRPO makes of it, with the likelihood of each step.

A step from t to t' < t, with velocity v and sigma_t = a sqrt(t / (1 - t)) (Flow-GRPO, section 4.2)::

    x_t' = x_t + (v + sigma_t^2 / (2 t) (x_t + (1 - t) v)) (t' - t) + sigma_t sqrt(t - t') noise

which has the marginals of the ODE x_t' = x_t + v (t' - t) for any a, as steps become small. The steps that are random
are the first ones, where it is decided what is drawn; the last ones follow the ODE, so that no noise is left in a
picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .editor import Editor

SHIFT = 3.0
"""Times are shifted towards noise, t = SHIFT u / (1 + (SHIFT - 1) u): flat pictures are decided early."""
STEPS = 10
RANDOM_STEPS = 4
DIFFUSION = 0.9
"""``a``; sigma of appendix B.2."""


@dataclass(frozen=True, slots=True)
class Samples:
    """``pictures`` [N, 3, 64, 64] in [-1, 1]; what random step k made of ``states[k]`` is ``states[k + 1]``.

    ``log_probs`` [N, random steps] are the likelihoods of that, under the editor that sampled.
    """

    pictures: Tensor
    states: list[Tensor]
    log_probs: Tensor


def times(steps: int = STEPS) -> Tensor:
    """From 1 to 0, [steps + 1]."""
    return shifted(torch.linspace(1, 0, steps + 1))


def shifted(u: Tensor) -> Tensor:
    """Times t for u from 0 to 1, of the same shape: more of them near 1."""
    return SHIFT * u / (1 + (SHIFT - 1) * u)


@torch.no_grad()
def sample(
    editor: Editor,
    source: Tensor,
    words: Tensor,
    generator: torch.Generator,
    *,
    steps: int = STEPS,
    random_steps: int = 0,
    noise: Tensor | None = None,
) -> Samples:
    """Edit ``source`` [N, 3, 64, 64] as ``words`` [N, MAX_WORDS] say. ``random_steps`` 0 is the ODE."""
    schedule = times(steps)
    x = torch.randn(source.shape, generator=generator) if noise is None else noise
    states, log_probs = [x], []
    meaning = editor.understand(words)
    for step in range(steps):
        velocity = _velocity(editor, x, schedule[step], source, meaning)
        if step < random_steps:
            mean, deviation = sde_step(x, velocity, schedule, step)
            x = mean + deviation * torch.randn(x.shape, generator=generator)
            states.append(x)
            log_probs.append(log_prob(x, mean, deviation))
        else:
            x = x + velocity * (schedule[step + 1] - schedule[step])
    likelihoods = torch.stack(log_probs, 1) if log_probs else torch.zeros(len(source), 0)
    return Samples(x.clamp(-1, 1), states, likelihoods)


def policy_step(
    editor: Editor, x: Tensor, step: int, source: Tensor, meaning: Tensor, steps: int = STEPS
) -> tuple[Tensor, float]:
    """Mean [N, 3, 64, 64] and standard deviation of what random step ``step`` makes of ``x``."""
    schedule = times(steps)
    return sde_step(x, _velocity(editor, x, schedule[step], source, meaning), schedule, step)


def sde_step(x: Tensor, velocity: Tensor, schedule: Tensor, step: int) -> tuple[Tensor, float]:
    """Mean and standard deviation of x_t' given x_t."""
    t, after = float(schedule[step]), float(schedule[step + 1])
    sigma = _sigma(schedule, step)
    drift = velocity + sigma**2 / (2 * t) * (x + (1 - t) * velocity)
    return x + drift * (after - t), sigma * (t - after) ** 0.5


def penalty(mean: Tensor, reference: Tensor, step: int, steps: int = STEPS) -> Tensor:
    """How far a random step's mean [N, 3, 64, 64] is from the reference's, over 2 sigma_t^2: what beta weighs."""
    return (mean - reference).square().mean() / (2 * _sigma(times(steps), step) ** 2)


def log_prob(x: Tensor, mean: Tensor, deviation: float) -> Tensor:
    """Log-likelihood [N] without its constant, averaged over pixels: the clip range of B.2 is meant for that."""
    return -((x - mean) ** 2).mean((1, 2, 3)) / (2 * deviation**2)


def _sigma(schedule: Tensor, step: int) -> float:
    """sigma_t. At t = 1, where it is infinite, its denominator is that of the next t, as in flow_grpo."""
    t = float(schedule[step])
    known = float(schedule[step + 1]) if t == 1 else t
    return float(DIFFUSION * (t / (1 - known)) ** 0.5)


def _velocity(editor: Editor, x: Tensor, t: Tensor, source: Tensor, meaning: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        velocity: Tensor = editor(x, t.expand(len(x)), source, meaning).float()
    return velocity
