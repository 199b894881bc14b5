"""``python -m support.two_processes JOBS``: what torchrun starts, twice. JOBS is a JSON file written by the test."""

import json
import os
import sys
from pathlib import Path

import torch
from rich.console import Console

from jrm_training.config import Recipe
from jrm_training.run import run

if __name__ == "__main__":
    torch.set_num_threads(1)
    for job in json.loads(Path(sys.argv[1]).read_text()):
        os.environ["MASTER_PORT"] = str(job["port"])
        run(Recipe.model_validate(job["recipe"]), Path(job["start"]), Path(job["out"]), "cpu", Console(quiet=True))
