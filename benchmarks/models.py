"""Checkpoints to measure: random weights, large enough that matrix products dominate, in the three layouts.

They are ordinary JRM checkpoints, so that every contestant, the server included, loads them as it would any other. All
layouts of a size have the same backbone and heads.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import Qwen3VLConfig

from jrm_service.model.checkpoint_files import read_json, write_json
from jrm_service.model.heads import head_shapes
from jrm_service.model.manifest import Manifest
from jrm_service.model.statedict import SHARD_BYTES, plan_shards, save_tensors
from jrm_service.model.tiny import MANIFEST, write_tiny_checkpoint
from jrm_service.model.weights import LM_HEAD, expected_tensors

from .shapes import SHAPES

Layout = Literal["paper", "short", "prompt first"]
LAYOUTS: tuple[Layout, ...] = ("paper", "short", "prompt first")
REVISION = 2  # raise when what is written changes, so that an old cached copy is not measured

# Lengths of the paper's prompts C.1 and C.2 in tokens of Qwen's vocabulary, the line of the instruction included.
PAPER_TOKENS = (385, 362)
# Ends every prompt. It takes about as many tokens of the tiny vocabulary as a fuller line takes of Qwen's.
LINE = "\n{instruction} <|Reward|>\n"
LINE_TOKENS = 17
HEADS = {"instruction_following": "head_0", "visual_quality": "head_1"}


@dataclass(frozen=True)
class Size:
    """``side`` of the square images in pixels; what differs from the tiny configuration; ``prompt_scale`` cuts prompts.

    ``heads`` are the hidden widths of both heads.
    """

    side: int
    heads: tuple[int, ...]
    prompt_scale: float = 1.0
    text: Mapping[str, Any] | None = None
    vision: Mapping[str, Any] | None = None


SIZES = {
    # 784 patches and 196 tokens an image, as in the paper; vision takes about as large a share as in the 8B model.
    "mid": Size(
        side=448,
        heads=(1024, 16),
        text={
            "hidden_size": 512,
            "intermediate_size": 1536,
            "num_hidden_layers": 4,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 64,
            "rope_scaling": {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [12, 10, 10]},
        },
        vision={"hidden_size": 128, "intermediate_size": 512, "out_hidden_size": 512, "num_heads": 4, "depth": 2},
    ),
    # Qwen3-VL-8B-Instruct, but for the language head, which is not used for scoring: it is tied.
    "8b": Size(
        side=448, heads=(1024, 16), text=SHAPES["8b"].config["text_config"], vision=SHAPES["8b"].config["vision_config"]
    ),
    # For a run that shows that everything works, in seconds; its ratios mean nothing. vLLM's attention on a CPU takes
    # no smaller heads.
    "tiny": Size(
        side=64,
        heads=(64, 16),
        prompt_scale=0.1,
        text={
            "head_dim": 32,
            "rope_scaling": {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [6, 5, 5]},
        },
    ),
}


def manifest(layout: Layout, size: Size) -> dict[str, Any]:
    """The manifest of a layout: two passes, one for each dimension.

    ``paper``: images first, prompts of ``PAPER_TOKENS``. ``short``: images first, the prompt is one line.
    ``prompt first``: the paper's lengths, but all of the prompt except that line stands before the images.
    """
    passes = []
    for number, (tokens, (dimension, head)) in enumerate(zip(PAPER_TOKENS, HEADS.items(), strict=True)):
        # The tiny vocabulary spells a full stop as one token, so stops fill a prompt up. The number tells passes apart.
        filler = str(number) + "." * (round(tokens * size.prompt_scale) - LINE_TOKENS)
        text = {
            "paper": {"parts": ["source", "edited", "prompt"], "prompt": filler + LINE},
            "short": {"parts": ["source", "edited", "prompt"], "prompt": str(number) + LINE},
            "prompt first": {"parts": ["prompt", "source", "edited", "ending"], "prompt": filler, "ending": LINE},
        }[layout]
        passes.append(text | {"read": {dimension: head}})
    image = {"min_pixels": size.side**2, "max_pixels": size.side**2, "resample": "bicubic"}
    heads = {name: {"hidden": list(size.heads), "outputs": ["mean", "log_std"]} for name in HEADS.values()}
    name = f"benchmark-{layout.replace(' ', '-')}-untrained"
    return MANIFEST | {"name": name, "image": image, "passes": passes, "heads": heads}


def cached_checkpoint(name: str, layout: Layout) -> Path:
    """The checkpoint of a size, such as "mid", and layout, written on first use under the user's cache directory."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jrm-serve"
    path = root / f"benchmark-{name}-{layout.replace(' ', '-')}-{REVISION}"
    if not path.exists():
        root.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=root))
        try:
            write_checkpoint(draft, layout, SIZES[name])
            draft.rename(path)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return path


def write_checkpoint(
    path: Path, layout: Layout, size: Size, *, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> Path:
    """Write a whole checkpoint folder, equal on every run; returns ``path``.

    Tokenizer, chat template and image rules are the tiny checkpoint's, its sizes and weights are replaced. Weights are
    made on ``device``, and are stored in ``dtype``.
    """
    written = manifest(layout, size)
    write_tiny_checkpoint(path, written)
    config = read_json(path / "config.json", [])
    assert config is not None
    config["dtype"] = str(dtype).removeprefix("torch.")
    config["text_config"] |= size.text or {}
    config["vision_config"] |= size.vision or {}
    write_json(path / "config.json", config)
    random = torch.Generator(device).manual_seed(0)
    shapes = expected_tensors(Qwen3VLConfig.from_dict(config))
    del shapes[LM_HEAD]  # tied, and not used for scoring
    (path / "model.safetensors").unlink()
    sizes = {name: math.prod(shape) * dtype.itemsize for name, shape in shapes.items()}
    _write_shards(path, sizes, lambda name: _initial(name, shapes[name], random, dtype))
    heads = head_shapes(Manifest.model_validate(written), config["text_config"]["hidden_size"])
    save_tensors(
        {n: _initial(n, s, random, torch.float32) for n, s in heads.items()}, path / "reward" / "heads.safetensors"
    )
    return path


def write_layout(path: Path, layout: Layout, size: Size, weights: Path) -> Path:
    """Another layout of a checkpoint that ``write_checkpoint`` has written: its files, and a manifest of its own."""
    (path / "reward").mkdir(parents=True)
    for file in weights.iterdir():
        if file.is_file():
            (path / file.name).symlink_to(file)
    (path / "reward" / "heads.safetensors").symlink_to(weights / "reward" / "heads.safetensors")
    write_json(path / "reward" / "manifest.json", manifest(layout, size))
    return path


def _write_shards(path: Path, sizes: Mapping[str, int], tensor: Callable[[str], torch.Tensor]) -> None:
    """One file, or shards with an index: no more is ever in memory than one of them."""
    shards = plan_shards(sizes, SHARD_BYTES)
    if len(shards) == 1:
        save_tensors({name: tensor(name) for name in shards[0]}, path / "model.safetensors")
        return
    files = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    for file, names in zip(files, shards, strict=True):
        save_tensors({name: tensor(name) for name in names}, path / file)
    weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
    write_json(
        path / "model.safetensors.index.json",
        {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map},
    )


def _initial(name: str, shape: tuple[int, ...], random: torch.Generator, dtype: torch.dtype) -> torch.Tensor:
    """Norms are 1, matrices scaled by their fan-in: activations keep their size, and different images score apart."""
    if "norm" in name and name.endswith("weight"):
        return torch.ones(shape, dtype=dtype)
    fan_in = math.prod(shape[1:]) if len(shape) > 1 else 64
    drawn = torch.randn(shape, generator=random, device=random.device) / math.sqrt(fan_in)
    return drawn.to(dtype).cpu()
