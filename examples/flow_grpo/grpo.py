"""Flow-GRPO (section 4.5, appendix B.2) on the small editor, one rank of it, with rewards from a running ``jrm serve``.

    torchrun --nproc-per-node 2 -m examples.flow_grpo.grpo --url http://127.0.0.1:8000 \
        --editor examples/flow_grpo/pretrained.safetensors --out out/flow_grpo/run

A step: some tasks, a group of edits of each, spread over the ranks as flow_grpo's sampler spreads them; rewards are
asked for by threads while the next edits are sampled; advantages are relative to the group; two updates with the
clipped ratio and a penalty on the distance from the pretrained editor. Every step is one line of ``log.jsonl``. A run
that was stopped goes on from its last state and samples what it would have sampled.
"""

from __future__ import annotations

import argparse
import copy
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor, nn

from jrm_client.flow_grpo import jrm_reward
from jrm_training.world.tasks import Task

from . import tasks, truth
from .editor import Editor, as_float, as_pixels, load, save
from .flow import RANDOM_STEPS, Samples, log_prob, penalty, policy_step, sample
from .state import RunFolder, digest, read_state

GROUP = 12
FIRST_TASK = 1_000_000
"""Number of the first training task: beyond those of pretraining."""

_BLOCKS = ("text.", "from_text.", "before.", "down.", "middle.", "up.", "join.", "after.")
# Settings that may change while a run goes on.
_FREE = {"steps", "save_every", "keep_every"}


@dataclass(frozen=True, slots=True)
class Settings:
    """Of a run; in brackets what appendix B.2 has, where it is another value.

    ``shuffled``: learn from the same rewards in a random order, a control that must not learn. ``std_penalty``: that
    many standard deviations are taken off each reward. ``on_error``: "nan" goes on where edits got no reward. Raises
    ValueError for tasks that cannot be shared by the updates of a step.
    """

    steps: int = 100
    prompts: int = 8  # of GROUP edits each [24]
    updates: int = 2  # each from its share of the groups
    learning_rate: float = 1e-4  # of the blocks' matrices themselves [4e-4 of a LoRA of them]
    ema: float = 0.9  # of the weights that are kept and judged
    clip_low: float = 1e-4
    clip_high: float = 5e-4
    kl: float = 0.04
    shuffled: bool = False
    std_penalty: float = 0.0
    on_error: Literal["raise", "nan"] = "raise"
    seed: int = 0
    save_every: int = 5  # steps between states to go on from
    keep_every: int = 50  # steps between editors that are kept

    def __post_init__(self) -> None:
        if self.prompts < 1 or self.updates < 1 or self.prompts % self.updates:
            raise ValueError(f"{self.prompts} tasks cannot be shared by {self.updates} updates")


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
    """One rank. Ranks hold the same weights: each computes the gradient of its samples, and they add them up.

    Raises ValueError for a folder that was begun with other settings, RuntimeError for one that is being written.
    """

    def __init__(self, url: str, start: Path, out: Path, settings: Settings) -> None:
        self.settings = settings
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        if GROUP % self.ranks:
            raise ValueError(f"a group of {GROUP} edits cannot be shared by {self.ranks} ranks")
        self.folder = RunFolder(out) if self.rank == 0 else None
        self.editor = load(start)
        self.average = copy.deepcopy(self.editor)
        self.reference = copy.deepcopy(self.editor).requires_grad_(False)
        self.trained = trained_parameters(self.editor)
        self.optimizer = torch.optim.AdamW(self.trained, lr=settings.learning_rate, weight_decay=1e-4)
        fixed = {name: value for name, value in asdict(settings).items() if name not in _FREE}
        self.identity = {**fixed, "ranks": self.ranks, "start": digest(start)}
        self.step, pinned = 0, None
        state = read_state(out)
        if state is not None:
            if state["identity"] != self.identity:
                raise ValueError(f"{out} was begun with other settings: {state['identity']}")
            self.editor.load_state_dict(state["editor"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, pinned = state["step"], state["fingerprint"]
        if self.folder is not None:
            self.folder.begin(self.step)
        self.reward_fn = jrm_reward(
            url,
            timeout=300,
            max_retries=100,  # a server that is restarted is waited for, as long as the timeout lasts
            pin_fingerprint=pinned or True,
            std_penalty=settings.std_penalty,
            on_error=settings.on_error,
        )
        self.executor = ThreadPoolExecutor(max_workers=8)

    def run(self) -> None:
        """Every step that is left. Raises what the reward function raises, on every rank alike."""
        try:
            while self.step < self.settings.steps:
                row = self._step()
                self.step += 1
                if self.folder is not None:
                    self.folder.add(row)
                    self._keep(self.folder)
                    print(_told(row, self.settings.steps), flush=True)
        finally:
            self.close()

    def close(self) -> None:
        """Let threads, connections and the folder go."""
        self.executor.shutdown(cancel_futures=True)
        self.reward_fn.close()
        if self.folder is not None:
            self.folder.close()

    def _step(self) -> dict[str, Any]:
        began = time.monotonic()
        batches, pending = self._sample()
        sampled = time.monotonic()
        results = [future.result()[0] for future in pending]
        rewarded = time.monotonic()
        names = list(results[0])
        local = torch.tensor([[result[name] for name in names] for result in results])  # [prompts, names, share]
        rewards = self._gathered(local)  # [prompts, names, GROUP]
        learned_from = rewards[:, 0]
        if self.settings.shuffled:
            learned_from = shuffle(learned_from, self.settings.seed * 100_000 + self.step)
        share = GROUP // self.ranks
        losses = self._update(batches, advantages(learned_from)[:, self.rank * share : (self.rank + 1) * share])
        updated = time.monotonic()
        seen = self._gathered(self._truth(batches))
        ended = time.monotonic()
        spread = rewards[:, 0].std(1)
        return {
            "step": self.step,
            "rewards": {name: rewards[:, number].nanmean().item() for number, name in enumerate(names)},
            "spread": spread.nanmean().item(),
            "without_spread": (spread < 1e-6).float().mean().item(),
            "failed": int(rewards[:, 0].isnan().sum()),
            "true_following": seen[:, 0].mean().item(),
            "true_quality": seen[:, 1].mean().item(),
            **losses,
            "seconds": {
                "sampling": sampled - began,
                "waiting": rewarded - sampled,
                "updating": updated - rewarded,
                "truth": ended - updated,
                "all": ended - began,
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

    def _update(self, batches: list[Batch], wanted: Tensor) -> dict[str, float]:
        """``updates`` optimizer steps, each from its share of the groups and every random step of them.

        ``wanted``: the advantages of this rank's edits, [prompts, share]. Returns figures of all ranks.
        """
        size = len(batches) // self.settings.updates
        figures, norms = torch.zeros(3), 0.0
        for update in range(self.settings.updates):
            for number in range(update * size, (update + 1) * size):
                for step in range(RANDOM_STEPS):
                    figures += self._backward(batches[number], wanted[number], step, 1 / (size * RANDOM_STEPS))
            for parameter in self.trained:
                assert parameter.grad is not None
                dist.all_reduce(parameter.grad)
                parameter.grad /= self.ranks
            norms += torch.nn.utils.clip_grad_norm_(self.trained, 1.0).item()
            self.optimizer.step()
            self.optimizer.zero_grad()
        with torch.no_grad():
            for kept, now in zip(self.average.parameters(), self.editor.parameters(), strict=True):
                kept.lerp_(now, 1 - self.settings.ema)
        dist.all_reduce(figures)
        policy_loss, kl, clipped = (figures / (self.ranks * len(batches) * RANDOM_STEPS)).tolist()
        gradient_norm = norms / self.settings.updates
        return {"policy_loss": policy_loss, "kl": kl, "clipped": clipped, "gradient_norm": gradient_norm}

    def _backward(self, batch: Batch, wanted: Tensor, step: int, weight: float) -> Tensor:
        """Add the gradient of one random step of a batch. Returns policy loss, KL and share of clipped ratios, [3]."""
        before, after = batch.samples.states[step], batch.samples.states[step + 1]
        mean, deviation = policy_step(self.editor, before, step, batch.source, self.editor.understand(batch.words))
        with torch.no_grad():
            meaning = self.reference.understand(batch.words)
            reference_mean, _ = policy_step(self.reference, before, step, batch.source, meaning)
        ratio = torch.exp(log_prob(after, mean, deviation) - batch.samples.log_probs[:, step])
        policy_loss, clipped = clipped_loss(ratio, wanted, self.settings.clip_low, self.settings.clip_high)
        kl = penalty(mean, reference_mean, step)
        torch.autograd.backward((policy_loss + self.settings.kl * kl) * weight)
        return torch.stack([policy_loss.detach(), kl.detach(), clipped])

    def _truth(self, batches: list[Batch]) -> Tensor:
        """True following and quality, each 0 to 1, of what was sampled: [prompts, 2, share]. Nothing learns from it."""
        rows = [
            [truth.scores(batch.task, picture) for picture in as_pixels(batch.samples.pictures)] for batch in batches
        ]
        return torch.tensor(rows).transpose(1, 2)

    def _keep(self, folder: RunFolder) -> None:
        """Keep an editor and a state, where it is time. The editor first: a state says that it is there."""
        kept = self.step == self.settings.steps or self.step % self.settings.keep_every == 0
        if kept:
            save(self.average, folder.path / f"step-{self.step:04d}.safetensors", steps=str(self.step))
        if kept or self.step % self.settings.save_every == 0:
            folder.save(
                {
                    "step": self.step,
                    "identity": self.identity,
                    "fingerprint": self.reward_fn.pinned_fingerprint,
                    "editor": self.editor.state_dict(),
                    "average": self.average.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                }
            )


def trained_parameters(editor: Editor) -> list[nn.Parameter]:
    """The matrices of the text encoder and the blocks, which a LoRA would adapt. The others are frozen.

    Among them are the layers that touch pixels: what they drift by is seen as a pattern all over a picture.
    """
    chosen = []
    for name, parameter in editor.named_parameters():
        if name.startswith(_BLOCKS) and parameter.ndim >= 2:
            chosen.append(parameter)
        else:
            parameter.requires_grad_(False)
    return chosen


def advantages(rewards: Tensor) -> Tensor:
    """Relative to the group, [prompts, GROUP]. An edit without a reward, NaN, takes no part: it is not a 0."""
    known = ~rewards.isnan()
    count = known.sum(1, keepdim=True)
    mean = rewards.nan_to_num().sum(1, keepdim=True) / count.clamp(min=1)
    deviations = torch.where(known, rewards.nan_to_num() - mean, 0.0)
    std = (deviations.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    return deviations / (std + 1e-4)


def shuffle(rewards: Tensor, seed: int) -> Tensor:
    """The rewards [prompts, GROUP] in a random order over all groups, the same for a seed."""
    order = torch.randperm(rewards.numel(), generator=torch.Generator().manual_seed(seed))
    return rewards.flatten()[order].reshape(rewards.shape)


def clipped_loss(ratio: Tensor, wanted: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """PPO's loss for ratios and advantages [N], clipped to [1 - low, 1 + high], and the share of ratios outside."""
    clipped = ratio.clamp(1 - low, 1 + high)
    loss = torch.maximum(-wanted * ratio, -wanted * clipped).mean()
    return loss, (ratio != clipped).float().mean()


def _told(row: dict[str, Any], steps: int) -> str:
    rewards = "  ".join(f"{name} {value:+.3f}" for name, value in row["rewards"].items())
    seconds = row["seconds"]
    return (
        f"step {row['step'] + 1}/{steps}  {rewards}  true following {row['true_following']:.3f}  true quality "
        f"{row['true_quality']:.3f}  kl {row['kl']:.4f}  {seconds['all']:.1f} s, {seconds['waiting']:.1f} s for rewards"
    )


def _flag(text: str) -> bool:
    return {"True": True, "False": False}[text]


def main() -> None:
    """Read the command line and run this rank."""
    parser = argparse.ArgumentParser(description="Flow-GRPO with rewards from a running jrm serve, one rank of it.")
    parser.add_argument("--url", required=True)
    parser.add_argument("--editor", type=Path, required=True, help="the pretrained editor")
    parser.add_argument("--out", type=Path, required=True)
    for name, default in asdict(Settings()).items():
        kind = _flag if isinstance(default, bool) else type(default)
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default)
    arguments = vars(parser.parse_args())
    url, editor, out = (arguments.pop(name) for name in ("url", "editor", "out"))
    settings = Settings(**arguments)
    dist.init_process_group("gloo")
    try:
        Trainer(url, editor, out, settings).run()
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
