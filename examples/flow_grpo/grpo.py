"""Flow-GRPO (section 4.5, appendix B.2) on the small editor, one rank of it, with rewards from a running ``jrm serve``.

    torchrun --nproc-per-node 2 -m examples.flow_grpo.grpo --url http://127.0.0.1:8000 --out out/flow_grpo/run

A step: some tasks, a group of edits of each, spread over the ranks as flow_grpo's sampler spreads them; rewards are
asked for by threads while the next edits are sampled; advantages are relative to the group; two updates with the
clipped ratio and a penalty on the distance from the pretrained editor. Every step is one line of ``log.jsonl``. A run
that was stopped goes on from its last state and samples what it would have sampled.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor

from jrm_client.flow_grpo import jrm_reward
from jrm_training.world.tasks import Task

from . import tasks, truth
from .editor import load, save
from .flow import RANDOM_STEPS, Samples, log_prob, policy_step, sample
from .pretrain import as_float

GROUP = 12
ADVANTAGE_CLIP = 5.0
FIRST_TASK = 1_000_000  # of the training split, beyond those of pretraining


@dataclass(frozen=True, slots=True)
class Settings:
    """Of a run; in brackets what appendix B.2 has, where it is another value.

    ``reward``: "reward" learns from what the service says; "shuffled" from the same numbers in a random order, a
    control that must not learn. ``std_penalty``: that many standard deviations are taken off each reward.
    """

    steps: int = 100
    prompts: int = 8  # of GROUP edits each [24]
    updates: int = 2
    learning_rate: float = 1e-4  # of all weights [4e-4 of a LoRA]
    clip_low: float = 1e-4
    clip_high: float = 5e-4
    kl: float = 0.04
    reward: str = "reward"
    std_penalty: float = 0.0
    on_error: str = "raise"
    seed: int = 0
    save_every: int = 5  # steps between states to go on from
    keep_every: int = 25  # steps between editors that are kept


@dataclass(frozen=True, slots=True)
class Batch:
    """What a rank sampled of one task: its share of a group."""

    task: Task
    source: Tensor
    words: Tensor
    samples: Samples

    def pixels(self) -> Tensor:
        """Edited pictures in [0, 1], float [N, 3, 64, 64]: what a pipeline gives for ``output_type="pt"``."""
        return (self.samples.pictures + 1) / 2


class Trainer:
    """One rank. Ranks hold the same weights: each computes the gradient of its samples, and they add them up."""

    def __init__(self, url: str, start: Path, out: Path, settings: Settings) -> None:
        self.settings, self.out = settings, out
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        if GROUP % self.ranks:
            raise ValueError(f"a group of {GROUP} edits cannot be shared by {self.ranks} ranks")
        self.editor = load(start)
        self.reference = copy.deepcopy(self.editor).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.editor.parameters(), lr=settings.learning_rate, weight_decay=1e-4)
        self.step, pinned = 0, None
        if self._state_file.exists():
            state = torch.load(self._state_file, weights_only=True)
            if state["settings"] != asdict(settings) | {"steps": state["settings"]["steps"]}:
                raise ValueError(f"{out} was begun with other settings: {state['settings']}")
            self.editor.load_state_dict(state["editor"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, pinned = state["step"], state["fingerprint"]
            self._forget_later_steps()
        self.reward_fn = jrm_reward(
            url,
            timeout=300,
            max_retries=100,  # a server that is restarted is waited for, as long as the timeout lasts
            pin_fingerprint=pinned or True,
            std_penalty=settings.std_penalty,
            on_error=settings.on_error,  # type: ignore[arg-type]
        )
        self.executor = ThreadPoolExecutor(max_workers=8)

    def run(self) -> None:
        """Every step that is left. Raises what the reward function raises, on every rank alike."""
        try:
            while self.step < self.settings.steps:
                row = self._step()
                self.step += 1
                if self.rank == 0:
                    with (self.out / "log.jsonl").open("a") as log:
                        log.write(json.dumps(row) + "\n")
                    print(_told(row, self.settings.steps), flush=True)
                    if self.step % self.settings.save_every == 0 or self.step == self.settings.steps:
                        self._save()
        finally:
            self.executor.shutdown(cancel_futures=True)
            self.reward_fn.close()

    def _step(self) -> dict[str, Any]:
        began = time.monotonic()
        batches, pending = self._sample()
        sampled = time.monotonic()
        results = [future.result()[0] for future in pending]
        rewarded = time.monotonic()
        names = list(results[0])
        local = torch.tensor([[result[name] for name in names] for result in results])  # [prompts, names, share]
        rewards = self._gathered(local)  # [prompts, names, GROUP]
        advantages = self._advantages(rewards[:, 0])
        share = GROUP // self.ranks
        mine = advantages[:, self.rank * share : (self.rank + 1) * share]
        losses = self._update(batches, mine)
        updated = time.monotonic()
        seen = self._gathered(self._truth(batches))
        means = {name: rewards[:, number].nanmean().item() for number, name in enumerate(names)}
        spread = rewards[:, 0].std(1)
        return {
            "step": self.step,
            "rewards": means,
            "spread": spread.nanmean().item(),
            "without_spread": (spread < 1e-6).float().mean().item(),
            "failed": rewards[:, 0].isnan().sum().item(),
            "true_following": seen[:, 0].mean().item(),
            "true_quality": seen[:, 1].mean().item(),
            **losses,
            "seconds": {
                "sampling": sampled - began,
                "waiting": rewarded - sampled,
                "updating": updated - rewarded,
                "all": time.monotonic() - began,
            },
        }

    def _sample(self) -> tuple[list[Batch], list[Future[Any]]]:
        """This rank's share of every group; its rewards are asked for as soon as it is there."""
        batches, pending = [], []
        share = GROUP // self.ranks
        for number in range(self.settings.prompts):
            index = FIRST_TASK + self.settings.seed * 100_000 + self.step * self.settings.prompts + number
            task = tasks.task(tasks.TRAINING, index)
            picture = tasks.source(task)
            source = as_float(torch.from_numpy(picture.copy()).permute(2, 0, 1)).expand(share, -1, -1, -1)
            words = self.editor.read([task.instruction] * share)
            generator = torch.Generator().manual_seed(index * self.ranks + self.rank)
            samples = sample(self.editor, source, words, generator, random_steps=RANDOM_STEPS)
            batch = Batch(task, source, words, samples)
            batches.append(batch)
            prompts, sources = [task.instruction] * share, [Image.fromarray(picture)] * share
            pending.append(self.executor.submit(self.reward_fn, batch.pixels(), prompts, [{}] * share, sources))
        return batches, pending

    def _gathered(self, local: Tensor) -> Tensor:
        """Every rank's [prompts, names, share] as [prompts, names, GROUP]."""
        parts = [torch.empty_like(local) for _ in range(self.ranks)]
        dist.all_gather(parts, local.contiguous())
        return torch.cat(parts, -1)

    def _advantages(self, rewards: Tensor) -> Tensor:
        """Relative to the group, [prompts, GROUP]. An edit without a reward takes no part: it is not a 0."""
        if self.settings.reward == "shuffled":
            generator = torch.Generator().manual_seed(self.settings.seed * 100_000 + self.step)  # the same on all ranks
            order = torch.randperm(rewards.numel(), generator=generator)
            rewards = rewards.flatten()[order].reshape(rewards.shape)
        known = ~rewards.isnan()
        count = known.sum(1, keepdim=True).clamp(min=1)
        values = rewards.nan_to_num()
        mean = values.sum(1, keepdim=True) / count
        deviations = torch.where(known, values - mean, 0.0)
        std = (deviations.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
        return (deviations / (std + 1e-4)).clamp(-ADVANTAGE_CLIP, ADVANTAGE_CLIP)

    def _update(self, batches: list[Batch], advantages: Tensor) -> dict[str, float]:
        """``updates`` optimizer steps, each over its share of the groups and every random step of them."""
        totals = {"policy_loss": 0.0, "kl": 0.0, "clipped": 0.0, "ratio_range": 0.0, "gradient_norm": 0.0}
        size = len(batches) // self.settings.updates
        for update in range(self.settings.updates):
            chosen = range(update * size, (update + 1) * size)
            for number in chosen:
                for step in range(RANDOM_STEPS):
                    figures = self._backward(batches[number], advantages[number], step, 1 / (size * RANDOM_STEPS))
                    for name, value in figures.items():
                        totals[name] += value / (len(batches) * RANDOM_STEPS)
            for parameter in self.editor.parameters():
                assert parameter.grad is not None
                dist.all_reduce(parameter.grad)
                parameter.grad /= self.ranks
            norm = torch.nn.utils.clip_grad_norm_(self.editor.parameters(), 1.0)
            totals["gradient_norm"] += norm.item() / self.settings.updates
            self.optimizer.step()
            self.optimizer.zero_grad()
        return totals

    def _backward(self, batch: Batch, advantages: Tensor, step: int, weight: float) -> dict[str, float]:
        before, after = batch.samples.states[step], batch.samples.states[step + 1]
        meaning = self.editor.understand(batch.words)
        mean, deviation = policy_step(self.editor, before, step, batch.source, meaning)
        with torch.no_grad():
            reference = self.reference.understand(batch.words)
            reference_mean, _ = policy_step(self.reference, before, step, batch.source, reference)
        ratio = torch.exp(log_prob(after, mean, deviation) - batch.samples.log_probs[:, step])
        clipped = ratio.clamp(1 - self.settings.clip_low, 1 + self.settings.clip_high)
        policy_loss = torch.maximum(-advantages * ratio, -advantages * clipped).mean()
        kl = ((mean - reference_mean) ** 2).mean() / (2 * deviation**2)
        torch.autograd.backward((policy_loss + self.settings.kl * kl) * weight)
        return {
            "policy_loss": policy_loss.item(),
            "kl": kl.item(),
            "clipped": (ratio != clipped).float().mean().item(),
            "ratio_range": (ratio - 1).abs().max().item(),
        }

    def _truth(self, batches: list[Batch]) -> Tensor:
        """True following and quality, each 0 to 1, of what was sampled: [prompts, 2, share]. Nothing learns from it."""
        rows = [
            [truth.scores(batch.task, picture) for picture in as_pixels(batch.samples.pictures)] for batch in batches
        ]
        return torch.tensor(rows).transpose(1, 2)

    @property
    def _state_file(self) -> Path:
        return self.out / "state.pt"

    def _save(self) -> None:
        partial = self.out / "state.partial"
        torch.save(
            {
                "step": self.step,
                "settings": asdict(self.settings),
                "fingerprint": self.reward_fn.pinned_fingerprint,
                "editor": self.editor.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            },
            partial,
        )
        partial.replace(self._state_file)
        if self.step % self.settings.keep_every == 0 or self.step == self.settings.steps:
            save(self.editor, self.out / f"step-{self.step:04d}.safetensors", steps=str(self.step))

    def _forget_later_steps(self) -> None:
        """Of a run that was stopped between two states the log is ahead."""
        if self.rank == 0:
            log = self.out / "log.jsonl"
            log.write_text("".join(log.read_text().splitlines(keepends=True)[: self.step]))


def as_pixels(pictures: Tensor) -> Any:
    """[-1, 1] float [N, 3, H, W] to uint8 [N, H, W, 3], rounded as the client rounds."""
    return ((pictures + 1) / 2 * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def read_log(out: Path) -> list[dict[str, Any]]:
    """The rows of a run's log, one for each step that is done; none before the first."""
    file = out / "log.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _told(row: dict[str, Any], steps: int) -> str:
    rewards = "  ".join(f"{name} {value:+.3f}" for name, value in row["rewards"].items())
    seconds = row["seconds"]
    return (
        f"step {row['step'] + 1}/{steps}  {rewards}  true following {row['true_following']:.3f}  true quality "
        f"{row['true_quality']:.3f}  kl {row['kl']:.4f}  {seconds['all']:.1f} s, {seconds['waiting']:.1f} s for rewards"
    )


def main() -> None:
    """Read the command line and run this rank."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", required=True)
    parser.add_argument("--editor", type=Path, required=True, help="the pretrained editor")
    parser.add_argument("--out", type=Path, required=True)
    for name, default in asdict(Settings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    arguments = vars(parser.parse_args())
    url, editor, out = (arguments.pop(name) for name in ("url", "editor", "out"))
    out.mkdir(parents=True, exist_ok=True)
    dist.init_process_group("gloo")
    try:
        Trainer(url, editor, out, Settings(**arguments)).run()
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
