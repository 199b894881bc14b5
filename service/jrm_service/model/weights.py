"""Tensors on disk: reading headers, comparing them with an architecture, hashing, loading to a device.

Only safetensors is read: nothing here unpickles or runs code from a checkpoint.
"""

from __future__ import annotations

import copy
import hashlib
import math
import os
import re
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel

from jrm_service.errors import CheckpointError, one_line

from .families import Config, family_of

LM_HEAD = "lm_head.weight"
WRAPPERS = ("module", "_orig_mod")
"""The prefixes that DataParallel and the like, and torch.compile, put into the names of the weights that they wrap."""

_LINEAR = re.compile(r"model\.language_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj\.weight")
_SHOWN = 8  # problems of one kind
_FLOATS = {"F64", "F32", "F16", "BF16"}


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """The file, shape and dtype of a tensor, from the file's header."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


def expected_tensors(config: Config) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of the family's stock class with a language head, without allocating any."""
    model = empty_model(config)
    shapes = {f"model.{name}": tuple(parameter.shape) for name, parameter in model.named_parameters()}
    return shapes | {LM_HEAD: (config.text_config.vocab_size, config.text_config.hidden_size)}


def empty_model(config: Config) -> PreTrainedModel:
    """The backbone without its language head, on the meta device."""
    with torch.device("meta"):
        # A model may change its configuration, which another must not see.
        return family_of(config).backbone_class(copy.deepcopy(config))


def weight_bytes(backbone: Mapping[str, TensorHeader], heads: Mapping[str, TensorHeader]) -> dict[str, int]:
    """Bytes of the weights on a device, by precision: the language head stays on disk, reward heads are in float32.

    In fp8, the linear layers of the language model have a byte a weight and a float32 scale a row; the rest is in
    bfloat16.
    """
    small = rows = rest = 0
    for name, header in backbone.items():
        if name == LM_HEAD:
            continue
        numbers = math.prod(header.shape)
        if _LINEAR.fullmatch(name):
            small += numbers
            rows += header.shape[0]
        else:
            rest += numbers
    always = 4 * sum(math.prod(header.shape) for header in heads.values())
    return {
        "float32": 4 * (small + rest) + always,
        "bfloat16": 2 * (small + rest) + always,
        "fp8": small + 4 * rows + 2 * rest + always,
    }


def read_headers(file: Path, root: Path, problems: list[str]) -> dict[str, TensorHeader]:
    """Tensor headers of one safetensors file; its problems are added to ``problems``."""
    where = file.relative_to(root).as_posix()
    if not file.exists():
        problems.append(f"{where}: missing")
        return {}
    try:
        with safe_open(file, framework="pt") as handle:
            slices = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118 - not a mapping
            return {n: TensorHeader(file, tuple(s.get_shape()), str(s.get_dtype())) for n, s in slices.items()}
    except (SafetensorError, OSError) as error:
        problems.append(f"{where}: not a readable safetensors file ({' '.join(str(error).split())[:200]})")
        return {}


def read_sharded_headers(root: Path, weight_map: Mapping[str, str], problems: list[str]) -> dict[str, TensorHeader]:
    """Headers of all shards of a ``model.safetensors.index.json``, checked against its ``weight_map``."""
    headers: dict[str, TensorHeader] = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard:  # a checkpoint may come from anywhere: it must not point outside its folder
            problems.append(f"model.safetensors.index.json: weight_map: '{shard}' is not a file name")
            continue
        of_shard = read_headers(root / shard, root, problems)
        indexed = {name for name, file in weight_map.items() if file == shard}
        if of_shard:
            lost = [f"{shard}: {name}: missing, though the index names it" for name in sorted(indexed - set(of_shard))]
            extra = [f"{shard}: {name}: not in the index" for name in sorted(set(of_shard) - indexed)]
            problems += shortened(lost, "are missing") + shortened(extra, "are not in the index")
        headers |= of_shard
    return headers


def compare_tensors(
    found: Mapping[str, TensorHeader],
    expected: Mapping[str, tuple[int, ...]],
    *,
    optional: frozenset[str] = frozenset(),
    source: str,
    root: Path,
) -> list[str]:
    """Problems of tensors that are missing, extra, misshapen or not floats, with their files.

    ``source`` is the file that asks for them. Many such problems usually have one cause: the first few are named and
    the rest counted, and if names merely have an extra prefix, or lack one, that is the only problem reported.
    """
    files = sorted({header.file.relative_to(root).as_posix() for header in found.values()})
    where = files[0] if len(files) == 1 else "model*.safetensors"
    shift = _shift(found, expected)
    if shift is not None:
        return [f"{where}: {shift}"]
    problems = [
        f"{where}: {name}: missing, {source} asks for {list(expected[name])}"
        for name in sorted(set(expected) - set(found) - optional)
    ]
    for name, header in sorted(found.items()):
        file = header.file.relative_to(root).as_posix()
        if name not in expected:
            problems.append(f"{file}: {name}: extra, not a tensor of what {source} describes")
        elif header.shape != expected[name]:
            problems.append(f"{file}: {name}: has shape {list(header.shape)}, {source} asks for {list(expected[name])}")
        elif header.dtype not in _FLOATS:
            problems.append(f"{file}: {name}: has dtype {header.dtype}, must be one of {', '.join(sorted(_FLOATS))}")
    return shortened(problems, "tensors do not fit")


def shortened(problems: list[str], rest: str) -> list[str]:
    """The first few of many problems, and the number of the rest: a flood of them hides their cause."""
    more = len(problems) - _SHOWN
    return problems if more <= 1 else [*problems[:_SHOWN], f"and {more} more {rest}"]


def _shift(found: Mapping[str, TensorHeader], expected: Mapping[str, tuple[int, ...]]) -> str | None:
    """The prefix that most of the names should not have, or lack; None if that is not the problem."""
    wrong = [name for name in found if name not in expected]
    if 2 * len(wrong) <= len(expected):
        return None
    extra = Counter(name.removesuffix(rest) for name in wrong for rest in _without_beginning(name) if rest in expected)
    lost = Counter(name.removesuffix(rest) for name in expected for rest in _without_beginning(name) if rest in found)
    inner = [name for name in wrong if _without_wrappers(name) in expected]
    for counts, description in ((extra, "before them that does not belong there"), (lost, "missing before them")):
        if counts:
            prefix, count = counts.most_common(1)[0]
            if 2 * count > len(wrong):
                return f"the names of {count} of {len(found)} tensors have {prefix!r} {description}, such as {wrong[0]}"
    if 2 * len(inner) > len(wrong):
        return (
            f"the names of {len(inner)} of {len(found)} tensors have the names of wrappers "
            f"({', '.join(WRAPPERS)}) in them, such as {inner[0]}"
        )
    return None


def _without_beginning(name: str) -> Iterator[str]:
    while "." in name:
        name = name.partition(".")[2]
        yield name


def _without_wrappers(name: str) -> str:
    return ".".join(piece for piece in name.split(".") if piece not in WRAPPERS)


def load_backbone(
    config: Config, headers: Mapping[str, TensorHeader], device: torch.device, dtype: torch.dtype
) -> tuple[PreTrainedModel, list[str]]:
    """Load every tensor straight to ``device`` and ``dtype``; returns (model in eval mode, problems).

    Tensors are read, moved and cast one at a time, so the weights are never held twice. The language head is left on
    disk: scoring does not use it.
    """
    model = empty_model(config)
    problems: list[str] = []
    wanted = {name: header for name, header in headers.items() if name != LM_HEAD}
    for name, tensor in read_tensors(wanted, device, dtype, problems):
        parent, _, leaf = name.removeprefix("model.").rpartition(".")
        setattr(model.get_submodule(parent), leaf, nn.Parameter(tensor, requires_grad=False))
    _rebuild_rotary_tables(model, device)
    left = [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]
    return model.eval(), problems + [f"{name}: was not loaded" for name in left]


def read_tensors(
    headers: Mapping[str, TensorHeader], device: torch.device, dtype: torch.dtype, problems: list[str]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor on device in dtype), shard by shard; a NaN or infinity is added to ``problems``."""
    for name, header in sorted(headers.items(), key=lambda item: (item[1].file, item[0])):
        # The file is opened for each tensor: pages of a mapped file stay resident until it is closed, and would add up
        # to a second copy of the weights. A copy, not a view: overwriting the file must not change a live reward.
        with safe_open(header.file, framework="pt", device=str(device)) as handle:
            tensor = handle.get_tensor(name).to(dtype=dtype, copy=True)
        if not torch.isfinite(tensor).all():
            problems.append(f"{header.file.name}: {name}: holds NaN or infinity")
        yield name, tensor


def _rebuild_rotary_tables(model: nn.Module, device: torch.device) -> None:
    """Compute the rotary frequencies, which are not stored, and which the meta device has left empty."""
    computed = [(name, module) for name, module in model.named_modules() if module._non_persistent_buffers_set]
    for name, module in computed:
        parent, _, leaf = name.rpartition(".")
        # transformers 5.16 builds the vision table from two numbers, later versions from the configuration.
        arguments = (module.config,) if hasattr(module, "config") else (module.dim, module.theta)
        rebuilt: nn.Module = type(module)(*arguments)
        setattr(model.get_submodule(parent), leaf, rebuilt.to(device))


def tensor_digests(headers: Mapping[str, TensorHeader]) -> dict[str, str]:
    """name -> SHA-256 of dtype, shape and bytes. Tensors are hashed in parallel: hashlib releases the GIL."""

    def digest(name: str) -> str:
        with safe_open(headers[name].file, framework="pt") as handle:
            return _digest(handle.get_tensor(name))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(headers, pool.map(digest, headers), strict=True))


def _digest(tensor: torch.Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)} ".encode())
    digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a folder beside ``out`` to write to, which becomes ``out`` at the end; an empty ``out`` is replaced.

    An exception inside leaves nothing behind. Raises CheckpointError if something cannot be written.
    """
    draft = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        draft.mkdir(parents=True)
        yield draft
        if out.exists():
            out.rmdir()
        draft.rename(out)
    except (OSError, SafetensorError) as error:
        raise CheckpointError([f"{out}: cannot be written ({one_line(error)})"]) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
