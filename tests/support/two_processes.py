"""``python -m support.two_processes JOBS``: what torchrun starts, twice. JOBS is a JSON file written by the test.

A job with ``state`` goes on from that folder of a run before it, which was killed there. Each run leaves
``spread.json`` beside its log: for every row, whether the gradients of the rows before it in its step were already
summed and spread when its forward pass began.
"""

import json
import os
import shutil
import sys
from pathlib import Path

import torch
from rich.console import Console
from torch.nn.modules.module import register_module_forward_pre_hook

from jrm_training.config import Recipe
from jrm_training.model import JointModel
from jrm_training.run import run

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

        hook = register_module_forward_pre_hook(watch)
        run(Recipe.model_validate(job["recipe"]), Path(job["start"]), Path(job["out"]), "cpu", Console(quiet=True))
        hook.remove()
        if os.environ["RANK"] == "0":
            (Path(job["out"]) / "spread.json").write_text(json.dumps(spread))
