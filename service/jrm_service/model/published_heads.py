"""The reward heads of a published model, read from its state dict and renamed to ours."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping

import torch

from .families import Config
from .statedict import DTYPE_BYTES, StateDict
from .weights import shortened

OUTPUTS = ["mean", "log_std"]
ANY_HEAD = "rm_head"
"""The prefix of all heads' names in the code of EditReward and of HPSv3."""

_LAYER = re.compile(r"(.+)\.(\d+)\.(?:weight|bias)")


def read_heads(
    source: StateDict,
    state_names: Mapping[str, str],
    config: Config | None,
    problems: list[str],
    notes: list[str],
) -> tuple[dict[str, list[int]], dict[str, torch.Tensor]]:
    """Return (hidden widths per head, tensors of ``reward/heads.safetensors``), float32.

    ``state_names`` maps each head to its module's name in the state dict. A module is Linear, ReLU, Dropout, Linear,
    ReLU, (Dropout,) Linear in a Sequential, so the keys end in ``{0,3,5}`` or ``{0,3,6}``. A last layer without bias,
    as EditReward's ``rm_head_kwargs`` can make it, gets a bias of 0, which is noted.
    """
    hidden: dict[str, list[int]] = {head: [] for head in state_names}
    tensors: dict[str, torch.Tensor] = {}
    if not source.headers:  # nothing could be read, which is reported already
        return hidden, tensors
    layers: dict[str, set[int]] = {module: set() for module in state_names.values()}
    unknown = []
    for name in source.headers:
        key = _LAYER.fullmatch(name)
        if key is not None and key[1] in layers:
            layers[key[1]].add(int(key[2]))
        elif name.startswith(ANY_HEAD):
            unknown.append(name)
    if unknown and all(name.startswith("rm_head.") for name in unknown):
        problems.append(f"rm_head.*: a single head; what is imported has {' and '.join(layers)}")
    else:
        unknown_problems = [f"{name}: not a tensor of {' or '.join(layers)}" for name in unknown]
        problems += shortened(unknown_problems, "belong to no head")
    for head, module in state_names.items():
        numbers = sorted(layers[module])
        head_problems = _head_problems(module, numbers, source, config)
        problems += head_problems
        if not head_problems:
            hidden[head] = [source.headers[f"{module}.{n}.weight"].shape[0] for n in numbers][:-1]
            tensors |= _head_tensors(head, module, numbers, source, problems, notes)
    return hidden, tensors


def _head_problems(module: str, layers: list[int], source: StateDict, config: Config | None) -> list[str]:
    if not layers:
        return [f"{module}: missing"]
    problems = []
    gaps = {after - before for before, after in itertools.pairwise(layers)}
    if layers[0] != 0 or not gaps <= {2, 3}:
        problems.append(f"{module}: has layers at {layers}, must be Linear, ReLU, (Dropout,) Linear, …")
    width = None if config is None else int(config.text_config.hidden_size)
    for layer in layers:
        last = layer == layers[-1]
        rows = len(OUTPUTS) if last else None
        key = f"{module}.{layer}"
        layer_problems = _shape_problems(f"{key}.weight", (rows, width), source)
        width = None if layer_problems else source.headers[f"{key}.weight"].shape[0]
        if not last or f"{key}.bias" in source.headers:
            layer_problems += _shape_problems(f"{key}.bias", (width,), source)
        problems += layer_problems
    return problems


def _shape_problems(name: str, wanted: tuple[int | None, ...], source: StateDict) -> list[str]:
    """``wanted`` has None for dimensions of any size."""
    header = source.headers.get(name)
    if header is None:
        return [f"{name}: missing"]
    if header.dtype not in DTYPE_BYTES:
        return [f"{name}: has dtype {header.dtype}, must be one of {', '.join(DTYPE_BYTES)}"]
    fits = len(header.shape) == len(wanted) and all(
        size is None or size == actual for size, actual in zip(wanted, header.shape, strict=True)
    )
    shown = ", ".join("any" if size is None else str(size) for size in wanted)
    return [] if fits else [f"{name}: has shape {list(header.shape)}, must be [{shown}]"]


def _head_tensors(
    head: str, module: str, layers: list[int], source: StateDict, problems: list[str], notes: list[str]
) -> dict[str, torch.Tensor]:
    tensors = {}
    for number, layer in enumerate(layers):
        for kind in ("weight", "bias"):
            name = f"{module}.{layer}.{kind}"
            if name in source.headers:
                tensor = source.read(name).float().contiguous()
            else:
                tensor = torch.zeros(len(OUTPUTS))
                notes.append(f"{name}: is not there, so the last layer has no bias")
            if not torch.isfinite(tensor).all():
                problems.append(f"{name}: holds NaN or infinity")
            tensors[f"{head}.{number}.{kind}"] = tensor
    return tensors
