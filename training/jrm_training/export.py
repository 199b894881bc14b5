"""A trained model as a checkpoint folder: the files of the one it started from, with new weights and provenance."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from jrm_service.errors import CheckpointError
from jrm_service.model.checkpoint import Checkpoint, open_checkpoint
from jrm_service.model.checkpoint_files import one_line, write_json
from jrm_service.model.statedict import SHARD_BYTES, copy_tensors, from_tensors, save_tensors

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_LEFT = ("*.safetensors", "*.safetensors.index.json", "golden.json", ".*")


def export(
    start: Checkpoint,
    out: Path,
    *,
    tensors: Mapping[str, torch.Tensor],
    heads: Mapping[str, torch.Tensor],
    name: str,
    dtype: str,
    provenance: Mapping[str, Any],
    shard_bytes: int = SHARD_BYTES,
) -> Checkpoint:
    """Write a checkpoint that can be served to ``out``, which must be new; returns it, opened.

    ``tensors`` are the stock weights by name, saved in ``dtype`` ("float32" or "bfloat16") in files of at most
    ``shard_bytes``; ``heads`` are saved in float32. ``provenance`` is added to that of ``start``. Golden scores of
    ``start`` are left behind: they are not this model's. Raises FileExistsError, and CheckpointError, with ``out`` gone
    again, when a weight is not finite, a tensor is missing or the folder cannot be written.
    """
    if out.exists():
        raise FileExistsError(f"{out}: already exists and is not overwritten")
    broken = [f"{key}: holds NaN or infinity" for key, tensor in heads.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise CheckpointError(broken)
    try:
        shutil.copytree(start.path, out, ignore=shutil.ignore_patterns(*_LEFT))
        config = json.loads((start.path / "config.json").read_bytes())
        write_json(out / "config.json", _with_dtype(config, dtype) | {"dtype": dtype})
        manifest = json.loads((start.path / "reward" / "manifest.json").read_bytes())
        history = {**manifest.get("provenance", {}), **provenance}
        write_json(out / "reward" / "manifest.json", manifest | {"name": name, "provenance": history})
        cast = {key: tensor.to("cpu", _DTYPES[dtype]) for key, tensor in tensors.items()}
        source = from_tensors(cast, out / "model.safetensors")
        problems = copy_tensors(
            source, source.headers, out, shard_bytes=shard_bytes, progress=lambda _done, _total: None
        )
        if problems:
            raise CheckpointError(problems)
        kept = {key: tensor.to("cpu", torch.float32).contiguous() for key, tensor in heads.items()}
        save_tensors(kept, out / "reward" / "heads.safetensors")
        return open_checkpoint(out)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(out, ignore_errors=True)
        raise CheckpointError([f"{out}: cannot be written ({one_line(error)})"]) from error
    except CheckpointError:
        shutil.rmtree(out, ignore_errors=True)
        raise


def _with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """A ``config.json`` with every dtype in it replaced: each tower may have its own, under either of two keys."""
    changed: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            changed[key] = _with_dtype(value, dtype)
        else:
            changed[key] = dtype if key in ("dtype", "torch_dtype") and value is not None else value
    return changed
