"""Devices: which one a name means, and whether one is still there."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from jrm_service.errors import CheckpointError
from jrm_service.scoring.backend import WorkerLost


def resolve_device(name: str) -> str:
    """``auto`` is the first GPU, or the CPU without one. Raises CheckpointError for a device that is not there."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda:0" if gpus else "cpu"
    if name == "cpu":
        return name
    match = re.fullmatch(r"cuda(?::(\d+))?", name)
    if match is None:
        raise CheckpointError([f"device '{name}': not a device name; use auto, cpu or cuda:0"])
    index = int(match[1] or 0)
    if index >= gpus:
        raise CheckpointError([f"device '{name}': torch sees {gpus} GPUs here; use --device cpu or check the driver"])
    return f"cuda:{index}"


def answers(device: str) -> bool:
    """Whether a device still runs work. After a sticky error every call on it fails."""
    if device == "cpu":
        return True
    try:
        torch.zeros(1, device=device).add_(1).item()
    except Exception:  # whatever the driver raises: it did not answer
        return False
    return True


@contextmanager
def on_device(device: str, still_there: Callable[[str], bool] = answers) -> Iterator[None]:
    """Run model code: an exception after which the device no longer answers becomes WorkerLost.

    The error's own type says too little: a library on a dead device raises RuntimeError as for a bug, and a lack of
    memory, after which the device is fine, may come as an accelerator error.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()  # what is tried next is smaller, and must find the room in one piece
        if not still_there(device):
            raise WorkerLost(f"{device} is lost") from error
        raise
