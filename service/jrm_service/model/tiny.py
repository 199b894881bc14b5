"""Writes a complete tiny checkpoint with random weights, always the same.

Tests and benchmarks build their variants with it: any manifest, tied or untied embeddings, one file or shards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen2Tokenizer

from . import tiny_shapes
from .checkpoint_files import write_json
from .families import FAMILIES, Family
from .heads import head_shapes
from .manifest import FORMAT, Manifest
from .statedict import save_tensors
from .weights import LM_HEAD, expected_tensors

NAME = "jrm-tiny-untrained"

SPECIAL_TOKENS = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|image_pad|>", "<|video_pad|>", "<|Reward|>"),
]
_WORDS = (
    "the",
    "make",
    "red",
    "blue",
    "green",
    "square",
    "circle",
    "add",
    "remove",
    "replace",
    "change",
    "with",
    "edit",
)
MANIFEST: dict[str, Any] = {
    "format": FORMAT,
    "name": NAME,
    "reward_token": "<|Reward|>",
    "image": {"min_pixels": 16384, "max_pixels": 65536, "resample": "bicubic"},
    "passes": [
        {
            "parts": ["source", "edited", "prompt"],
            "prompt": "Text instruction - {instruction}\nHow good is the edit? <|Reward|>\n",
            "read": {"instruction_following": "head_0", "visual_quality": "head_1"},
        }
    ],
    "heads": {
        "head_0": {"hidden": [64, 16], "outputs": ["mean", "log_std"]},
        "head_1": {"hidden": [64, 16], "outputs": ["mean", "log_std"]},
    },
    "reward": {"combine": "mean", "weights": {"instruction_following": 1.0, "visual_quality": 1.0}},
    "explain": {
        "instruction_following": {"template": None, "regions": True},
        "visual_quality": {"template": None, "regions": False},
    },
    "provenance": {"base": None, "notes": "random weights: the scores mean nothing"},
}


def write_tiny_checkpoint(
    path: Path,
    manifest: Mapping[str, Any] = MANIFEST,
    *,
    family: str = "qwen3_vl",
    tied: bool = True,
    shards: int = 1,
    seed: int = 0,
) -> Path:
    """Write a whole checkpoint folder with random weights, equal for equal arguments; returns ``path``.

    ``manifest`` is the content of ``reward/manifest.json``, ``family`` a ``model_type``. Raises
    pydantic.ValidationError when the manifest is not valid.
    """
    checked = Manifest.model_validate(manifest)
    path.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    tokenizer.chat_template = tiny_shapes.CHAT_TEMPLATES[family]
    tokenizer.save_pretrained(path)
    config = _config(tokenizer, FAMILIES[family], tied=tied)
    write_json(path / "config.json", config)
    write_preprocessors(path, checked, patch_size=config["vision_config"]["patch_size"], family=family)
    write_json(path / "reward" / "manifest.json", manifest)
    shapes = expected_tensors(FAMILIES[family].config_class.from_dict(config))
    if tied:
        del shapes[LM_HEAD]
    random = np.random.RandomState(seed)  # numpy guarantees that its stream never changes
    _write_shards(path, {name: _initial(name, shape, random) for name, shape in shapes.items()}, shards)
    hidden_size = config["text_config"]["hidden_size"]
    heads = {name: _initial(name, shape, random) for name, shape in head_shapes(checked, hidden_size).items()}
    save_tensors(heads, path / "reward" / "heads.safetensors")
    return path


def _initial(name: str, shape: tuple[int, ...], random: np.random.RandomState) -> torch.Tensor:
    """Norms are 1, biases small, matrices scaled by their fan-in, so that different images get different scores."""
    if "norm" in name and name.endswith("weight"):
        return torch.ones(shape)
    fan_in = math.prod(shape[1:]) if len(shape) > 1 else 64
    return torch.from_numpy((random.standard_normal(shape) / math.sqrt(fan_in)).astype(np.float32))


def _write_shards(path: Path, tensors: dict[str, torch.Tensor], shards: int) -> None:
    if shards == 1:
        save_tensors(tensors, path / "model.safetensors")
        return
    names = sorted(tensors)
    files = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(names)}
    for file in sorted(set(files.values())):
        save_tensors({n: tensors[n] for n in names if files[n] == file}, path / file)
    size = sum(tensor.nbytes for tensor in tensors.values())
    write_json(path / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": files})


def _tokenizer() -> Qwen2Tokenizer:
    """Bytes plus merges for a few words, built through Qwen's own class so that every loader tokenizes alike."""
    vocab = {symbol: number for number, symbol in enumerate(sorted(ByteLevel.alphabet()))}
    merges: list[tuple[str, str]] = []
    for word in _WORDS:
        left = "Ġ"  # the byte-level spelling of a space
        for letter in word:
            if left + letter not in vocab:
                vocab[left + letter] = len(vocab)
                merges.append((left, letter))
            left += letter
    for token in SPECIAL_TOKENS:
        vocab[token] = len(vocab)
    return Qwen2Tokenizer(
        vocab=vocab,
        merges=merges,
        eos_token="<|im_end|>",  # noqa: S106 - a vocabulary entry
        extra_special_tokens=SPECIAL_TOKENS,
        model_max_length=8192,
    )


def _config(tokenizer: Qwen2Tokenizer, family: Family, *, tied: bool) -> dict[str, Any]:
    ids = tokenizer.get_vocab()
    text = tiny_shapes.TEXT[family.model_type] | {
        "vocab_size": len(tokenizer),
        "tie_word_embeddings": tied,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
    }
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "dtype": "float32",
        "tie_word_embeddings": tied,
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "text_config": text,
        "vision_config": tiny_shapes.VISION[family.model_type],
    }


def write_preprocessors(path: Path, manifest: Manifest, *, patch_size: int, family: str = "qwen3_vl") -> None:
    """Write the two files that transformers and vLLM read, in agreement with the manifest's ``image``.

    The one for videos is never used for scoring, but both libraries require it.
    """
    rules = {
        "processor_class": FAMILIES[family].processor_class,
        "patch_size": patch_size,
        "merge_size": 2,
        "temporal_patch_size": 2,
        **tiny_shapes.NORMALIZATION[family],
    }
    image = {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "size": {"shortest_edge": manifest.image.min_pixels, "longest_edge": manifest.image.max_pixels},
        "resample": {"lanczos": 1, "bilinear": 2, "bicubic": 3}[manifest.image.resample],
    }
    video = {
        "video_processor_type": "Qwen3VLVideoProcessor" if family == "qwen3_vl" else "Qwen2VLVideoProcessor",
        "size": {"shortest_edge": 4096, "longest_edge": 65536},
    }
    write_json(path / "preprocessor_config.json", rules | image)
    write_json(path / "video_preprocessor_config.json", rules | video)
