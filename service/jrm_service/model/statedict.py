"""Reads a state dict from disk in any form that training code writes, and copies it into safetensors shards.

Tensors are read one at a time and keep their dtype; at most one shard is held in memory. Pickles are read with
``weights_only=True``: code inside them is never run.
"""

from __future__ import annotations

import json
import math
import pickle
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from .checkpoint_files import read_json
from .weights import TensorHeader, read_headers, read_sharded_headers

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("model.pth", "final_model.pth")
SHARD_BYTES = 4 * 10**9

DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_DTYPE_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_WRAPPERS = ("model", "state_dict", "module")
_PARALLEL = "module."  # the prefix that DataParallel and the like put before every name
_HALVES = ("model.language_model.", "model.visual.")
_COMPILED = "_orig_mod."  # the prefix that torch.compile puts before the names of compiled modules


@dataclass(frozen=True)
class StateDict:
    """Tensors by name: ``headers`` are known without reading, ``read`` loads one, in its own dtype, to the CPU."""

    headers: Mapping[str, TensorHeader]
    read: Callable[[str], torch.Tensor]

    @property
    def files(self) -> list[str]:
        """Names of the files that hold tensors."""
        return sorted({header.file.name for header in self.headers.values()})

    def nbytes(self, name: str) -> int:
        """Size of one tensor in bytes."""
        header = self.headers[name]
        return math.prod(header.shape) * DTYPE_BYTES[header.dtype]


def open_state_dict(folder: Path, problems: list[str], notes: list[str], *, first: tuple[str, ...] = ()) -> StateDict:
    """Find and open ``model.safetensors``, its sharded form, ``model.pth`` or ``final_model.pth``, in this order.

    The files in ``first`` are preferred to them. Errors are added to ``problems``, and what the user should know to
    ``notes``; without weights the result is empty.
    """
    names = tuple(dict.fromkeys((*first, WHOLE, INDEX, *PICKLES)))
    candidates = [folder / name for name in names if (folder / name).exists()]
    if not candidates:
        problems.append(f"{folder.name}: holds none of {', '.join(names)}")
        return from_tensors({}, folder)
    chosen, *others = candidates
    notes += [f"{chosen.name} was read, {other.name} beside it was not" for other in others]
    if chosen.name in PICKLES:
        return from_tensors(_read_pickle(chosen, problems), chosen)
    if chosen.name == INDEX:
        return _from_headers(read_sharded_headers(folder, _read_weight_map(chosen, problems), problems))
    return _from_headers(read_headers(chosen, folder, problems))


def _read_weight_map(file: Path, problems: list[str]) -> dict[str, str]:
    index = read_json(file, problems)
    if index is None:
        return {}
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        problems.append(f"{file.name}: weight_map: must map tensor names to files")
        return {}
    return weight_map


def _read_pickle(file: Path, problems: list[str]) -> dict[str, torch.Tensor]:
    """Map a ``torch.save`` file into memory, unwrapped to the state dict inside."""
    try:
        loaded: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        # torch's own message recommends loading it unsafely, which must not be done here.
        match = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it asks for '{match[1]}'" if match else "it is not a plain file of tensors"
        problems.append(
            f"{file.name}: refused: {reason}, and pickled code is never run; save the state dict alone as safetensors"
        )
        return {}
    except Exception as error:  # a damaged file raises whatever its first wrong byte leads to
        problems.append(f"{file.name}: not a readable torch.save file ({type(error).__name__})")
        return {}
    for wrapper in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping) or not loaded:
        problems.append(f"{file.name}: holds no state dict (names -> tensors)")
        return {}
    other_values = [str(name) for name, value in loaded.items() if not isinstance(value, torch.Tensor)]
    problems += [f"{file.name}: {name}: not a tensor" for name in other_values]
    return {str(name): value for name, value in loaded.items() if isinstance(value, torch.Tensor)}


def from_tensors(tensors: Mapping[str, torch.Tensor], file: Path) -> StateDict:
    """Tensors in memory, as if they had been read from ``file``; prefixes of wrappers are removed from the names."""
    by_name = {name: tensors[stored] for name, stored in _unwrapped(tensors).items()}
    headers = {
        name: TensorHeader(file, tuple(tensor.shape), _DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype)))
        for name, tensor in by_name.items()
    }
    # A pickle may hold one storage under several names, which safetensors refuses to write: every read is a copy.
    return StateDict(headers, lambda name: by_name[name].detach().clone(memory_format=torch.contiguous_format))


def _from_headers(stored: Mapping[str, TensorHeader]) -> StateDict:
    stored_name = _unwrapped(stored)
    headers = {name: stored[old] for name, old in stored_name.items()}

    def read(name: str) -> torch.Tensor:
        with safe_open(headers[name].file, framework="pt") as handle:
            tensor: torch.Tensor = handle.get_tensor(stored_name[name])
            return tensor

    return StateDict(headers, read)


def with_stock_names(source: StateDict) -> StateDict:
    """The same tensors under the names that stock checkpoints have today.

    Before transformers 4.52 the halves of a backbone were ``visual`` and ``model``, side by side; now both are inside
    ``model``. A file with names of both generations is left unchanged, and refused later.
    """
    if any(name.startswith(_HALVES) for name in source.headers):
        return source
    old = {_stock_name(name): name for name in source.headers}
    headers = {new: source.headers[name] for new, name in old.items()}
    return StateDict(headers, lambda name: source.read(old[name]))


def _stock_name(name: str) -> str:
    if name.startswith("visual."):
        return f"model.{name}"
    return f"model.language_{name}" if name.startswith("model.") else name


def _unwrapped(names: Iterable[str]) -> dict[str, str]:
    """Names as the model itself has them -> names as they are stored.

    torch.compile's prefix is removed wherever it occurs, DataParallel's only if all names have it: otherwise it is part
    of the names.
    """
    stored = list(names)
    own = [name.removeprefix(_COMPILED).replace(f".{_COMPILED}", ".") for name in stored]
    while own and all(name.startswith(_PARALLEL) for name in own):
        own = [name.removeprefix(_PARALLEL) for name in own]
    unwrapped = dict(zip(own, stored, strict=True))
    return unwrapped if len(unwrapped) == len(stored) else {name: name for name in stored}


def save_tensors(tensors: Mapping[str, torch.Tensor], file: Path) -> None:
    """Write one safetensors file with the permissions that the umask allows.

    safetensors writes through a private temporary file, so that only the owner could read the result, and no server
    under another user could load it. Raises OSError or SafetensorError if it cannot be written.
    """
    file.touch()
    mode = file.stat().st_mode
    save_file(dict(tensors), file, metadata={"format": "pt"})
    file.chmod(mode)


def plan_shards(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Split names, in their order, into shards of at most ``limit`` bytes; a larger tensor has a shard of its own."""
    shards: list[list[str]] = []
    free = 0
    for name, size in sizes.items():
        if not shards or size > free:
            shards.append([])
            free = limit
        shards[-1].append(name)
        free -= size
    return shards


def copy_tensors(
    source: StateDict,
    names: Iterable[str],
    folder: Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int, int], None],
) -> list[str]:
    """Copy tensors, in their own dtype, to ``model.safetensors`` or to shards with an index; returns problems.

    A tensor that holds NaN or infinity is a problem. ``progress`` is called with (bytes done, bytes in all). Raises
    OSError or SafetensorError when the folder cannot be written.
    """
    sizes = {name: source.nbytes(name) for name in names}
    shards = plan_shards(sizes, shard_bytes)
    total, done = sum(sizes.values()), 0
    problems: list[str] = []
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = WHOLE if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {}
        for name in shard:
            tensors[name] = source.read(name)
            if not torch.isfinite(tensors[name]).all():
                problems.append(f"{source.headers[name].file.name}: {name}: holds NaN or infinity")
            weight_map[name] = file
            done += sizes[name]
            progress(done, total)
        if not problems:
            save_tensors(tensors, folder / file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return problems
