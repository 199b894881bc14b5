"""Pretrain the editor on right and wrong edits, so that it edits badly: ``python -m examples.flow_grpo.pretrain``."""

from __future__ import annotations

import argparse
import copy
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from . import tasks
from .editor import Editor, as_float, save, split
from .flow import shifted

BATCH = 48
PEAK, FINAL = 1e-3, 5e-5  # learning rate, cosine
EMA = 0.999


class _Examples(IterableDataset[tuple[str, Tensor, Tensor]]):
    """Instruction, source and edit, uint8 [3, 64, 64], from an example on, for ever."""

    def __init__(self, first: int) -> None:
        self._first = first

    def __iter__(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        for index in itertools.count(self._first + number, workers):
            task, source, edited = tasks.example(index)
            yield task.instruction, _channels_first(source), _channels_first(edited)


def _channels_first(picture: np.ndarray) -> Tensor:
    return torch.from_numpy(picture.copy()).permute(2, 0, 1)


def flow_loss(
    editor: Editor, instructions: list[str], source: Tensor, edited: Tensor, noise: Tensor, t: Tensor
) -> Tensor:
    """Mean squared error of the velocity, for t not near 0, where it says nothing that counts."""
    x_t = (1 - t)[:, None, None, None] * edited + t[:, None, None, None] * noise
    meaning = editor.understand(editor.read(instructions))
    with torch.autocast("cpu", torch.bfloat16):
        predicted = editor.predict(x_t, t, source, meaning)
    weight = 1 / t.clamp(min=0.15) ** 2
    return (weight * (predicted - edited).square().mean((1, 2, 3))).mean()


def pretrain(out: Path, steps: int, seed: int = 0, save_every: int = 250) -> None:
    """Train for ``steps`` steps; a run that was stopped goes on from its last state in ``out``."""
    torch.manual_seed(seed)
    vocabulary = sorted(
        {word for index in range(3000) for word in split(tasks.task(tasks.TRAINING, index).instruction)}
    )
    editor = Editor(vocabulary)
    average = copy.deepcopy(editor)
    optimizer = torch.optim.AdamW(editor.parameters(), lr=PEAK, betas=(0.9, 0.99), weight_decay=0.01)
    state_file, begin = out / "state.pt", 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        begin = state["step"]
        editor.load_state_dict(state["editor"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        torch.manual_seed(seed + begin)  # not the noise of the beginning again
    out.mkdir(parents=True, exist_ok=True)
    batches = iter(DataLoader(_Examples(begin * BATCH), BATCH, num_workers=1, prefetch_factor=8))
    started, losses = time.monotonic(), []
    for step in range(begin, steps):
        instructions, source, edited = next(batches)
        progress = step / steps
        for group in optimizer.param_groups:
            group["lr"] = (FINAL + (PEAK - FINAL) * (1 + np.cos(np.pi * progress)) / 2) * min(1, (step + 1) / 200)
        t = shifted(torch.rand(BATCH)).clamp(min=0.02)
        source, edited = as_float(source), as_float(edited)
        loss = flow_loss(editor, instructions, source, edited, torch.randn_like(edited), t)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(editor.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            decay = min(EMA, (step + 1) / (step + 10))
            for kept, now in zip(average.parameters(), editor.parameters(), strict=True):
                kept.lerp_(now, 1 - decay)
        losses.append(loss.item())
        if (step + 1) % save_every == 0 or step + 1 == steps:
            seconds = time.monotonic() - started
            print(
                f"step {step + 1} of {steps}  loss {np.mean(losses):.4f}  {seconds / (step + 1 - begin):.2f} s a step",
                flush=True,
            )
            losses.clear()
            save(average, out / "editor.safetensors", steps=str(step + 1))
            torch.save(
                {
                    "step": step + 1,
                    "editor": editor.state_dict(),
                    "average": average.state_dict(),
                    "optimizer": optimizer.state_dict(),
                },
                out / "state.partial",
            )
            (out / "state.partial").replace(state_file)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/flow_grpo/pretrained"))
    parser.add_argument("--steps", type=int, default=3000)
    arguments = parser.parse_args()
    pretrain(arguments.out, arguments.steps)
