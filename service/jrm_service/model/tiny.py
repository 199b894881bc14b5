"""A complete tiny checkpoint with random weights, written from nothing and always the same.

It is what tests and benchmarks build their variants from: any manifest, tied or untied embeddings, one file or shards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen2Tokenizer, Qwen3VLConfig

from .files import write_json
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
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
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
    path: Path, manifest: Mapping[str, Any] = MANIFEST, *, tied: bool = True, shards: int = 1, seed: int = 0
) -> Path:
    """Write a whole checkpoint folder with random weights, equal for equal arguments; returns ``path``.

    ``manifest`` is the content of ``reward/manifest.json``. Raises pydantic.ValidationError when it is not valid.
    """
    checked = Manifest.model_validate(manifest)
    path.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    tokenizer.save_pretrained(path)
    config = _config(tokenizer, tied=tied)
    write_json(path / "config.json", config)
    write_preprocessors(path, checked, patch_size=16)
    write_json(path / "reward" / "manifest.json", manifest)
    shapes = expected_tensors(Qwen3VLConfig.from_dict(config))
    if tied:
        del shapes[LM_HEAD]
    random = np.random.RandomState(seed)  # the one numpy stream that is frozen for good
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
    tokenizer = Qwen2Tokenizer(
        vocab=vocab,
        merges=merges,
        eos_token="<|im_end|>",  # noqa: S106 - a vocabulary entry
        extra_special_tokens=SPECIAL_TOKENS,
        model_max_length=8192,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _config(tokenizer: Qwen2Tokenizer, *, tied: bool) -> dict[str, Any]:
    """Spelt out rather than dumped by transformers: its defaults may change, this file must not."""
    ids = tokenizer.get_vocab()
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "dtype": "float32",
        "tie_word_embeddings": tied,
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "text_config": {
            "model_type": "qwen3_vl_text",
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 8192,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "tie_word_embeddings": tied,
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "rope_theta": 10000.0,
            "rope_scaling": {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [4, 2, 2]},
        },
        "vision_config": {
            "model_type": "qwen3_vl_vision",
            "depth": 3,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 4,
            "in_channels": 3,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": 64,
            "num_position_embeddings": 256,
            "deepstack_visual_indexes": [0, 1],
            "hidden_act": "gelu_pytorch_tanh",
        },
    }


def write_preprocessors(path: Path, manifest: Manifest, *, patch_size: int) -> None:
    """Write the two files that transformers and vLLM read, in agreement with the manifest's ``image``.

    That for videos is never used for scoring, but both ask for it.
    """
    rules = {
        "processor_class": "Qwen3VLProcessor",
        "patch_size": patch_size,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    image = {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "size": {"shortest_edge": manifest.image.min_pixels, "longest_edge": manifest.image.max_pixels},
        "resample": {"lanczos": 1, "bilinear": 2, "bicubic": 3}[manifest.image.resample],
    }
    video = {
        "video_processor_type": "Qwen3VLVideoProcessor",
        "size": {"shortest_edge": 4096, "longest_edge": 65536},
    }
    write_json(path / "preprocessor_config.json", rules | image)
    write_json(path / "video_preprocessor_config.json", rules | video)
