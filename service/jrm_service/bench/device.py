"""The peak rate of a device: matrix products of the shapes of the model's own linear layers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from jrm_service.model.weights import empty_model

_RUNS = 5


def wait_for(device: str) -> None:
    """Wait until a GPU has finished all its work."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def linear_shapes(config: Any) -> Counter[tuple[int, int]]:
    """Return (inputs, outputs) of the language model's linear layers, and how many layers have each shape."""
    language = empty_model(config).language_model
    linear = (module for module in language.modules() if isinstance(module, nn.Linear))
    return Counter((module.in_features, module.out_features) for module in linear)


def matrix_product_rate(
    device: str, dtype: torch.dtype, shapes: Counter[tuple[int, int]], *, tokens: int, seconds: float = 1.0
) -> float:
    """Return FLOP/s over products [tokens, inputs] x [inputs, outputs] of all ``shapes``, each as often as it occurs.

    Each product is timed in several short runs, of which the best counts; all take about ``seconds``. The linear layers
    would run at this rate if nothing came between them.
    """
    flops = total = 0.0
    for (inputs, outputs), number in shapes.items():
        left = torch.randn(tokens, inputs, device=device).to(dtype)
        right = torch.randn(outputs, inputs, device=device).to(dtype)
        best = _best_of(device, left, right.t(), seconds / len(shapes) / _RUNS)
        flops += number * 2.0 * tokens * inputs * outputs
        total += number * best
    return flops / total


def _best_of(device: str, left: torch.Tensor, right: torch.Tensor, seconds: float) -> float:
    """Seconds of one product in the best of the runs, of about ``seconds`` each."""
    torch.mm(left, right)  # warm-up: a first call prepares things
    once = _timed(device, left, right, 1)
    repeats = max(1, int(seconds / once))
    return min(_timed(device, left, right, repeats) for _ in range(_RUNS))


def _timed(device: str, left: torch.Tensor, right: torch.Tensor, repeats: int) -> float:
    wait_for(device)
    started = time.perf_counter()
    for _ in range(repeats):
        torch.mm(left, right)
    wait_for(device)
    return (time.perf_counter() - started) / repeats


def device_name(devices: Sequence[str]) -> str:
    """Return the driver's names of the GPUs; empty for a CPU, which ``tables.machine`` names."""
    return ", ".join(torch.cuda.get_device_name(device) for device in devices if device.startswith("cuda"))
