"""``python -m support.two_processes JOBS``: what torchrun starts, twice. JOBS is a JSON file written by the test.

A job with ``state`` goes on from that folder of a run before it, which was killed there. Each run leaves two files
beside its log. ``spread.json``: for every row, whether the gradients of the rows before it in its step were already
summed and spread when its forward pass began. ``bytes.json``: what the first process held of weights, gradients and
optimizer state after an optimizer step.
"""

import json
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from rich.console import Console
from torch.distributed.tensor import DTensor
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook

from jrm_training.config import Recipe
from jrm_training.model import JointModel
from jrm_training.run import run


def nbytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of this process's share."""
    return sum((tensor.to_local() if isinstance(tensor, DTensor) else tensor).nbytes for tensor in tensors)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for job in json.loads(Path(sys.argv[1]).read_text()):
        os.environ["MASTER_PORT"] = str(job["port"])
        if "state" in job and os.environ["RANK"] == "0":  # the other waits until both are there
            state = Path(job["state"])
            shutil.copytree(state, Path(job["out"]) / "states" / state.name)
        spread: list[bool] = []

        def watch(module: torch.nn.Module, _inputs: object, spread: list[bool] = spread) -> None:
            if isinstance(module, JointModel):
                spread.append(all(weight.grad is not None for weight in module.parameters()))

        held: dict[str, int] = {}

        def weigh(optimizer: torch.optim.Optimizer, *_: object, held: dict[str, int] = held) -> None:
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            held["weights"] = nbytes(weights)
            held["gradients"] = nbytes(weight.grad for weight in weights)
            held["optimizer"] = nbytes(tensor for state in optimizer.state.values() for tensor in state.values())

        hooks = [register_module_forward_pre_hook(watch), register_optimizer_step_post_hook(weigh)]
        run(Recipe.model_validate(job["recipe"]), Path(job["start"]), Path(job["out"]), "cpu", Console(quiet=True))
        for hook in hooks:
            hook.remove()
        if os.environ["RANK"] == "0":
            (Path(job["out"]) / "spread.json").write_text(json.dumps(spread))
            (Path(job["out"]) / "bytes.json").write_text(json.dumps(held))
