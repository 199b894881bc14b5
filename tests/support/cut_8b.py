"""Qwen3-VL-8B-Instruct as a hub has it, cut to a few narrow layers, with as many tokens as the real one."""

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from benchmarks.shapes import SHAPES
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer, Qwen3VLConfig

from jrm_service.model.editreward import default_prompts
from jrm_service.model.tiny_shapes import CHAT_TEMPLATES
from jrm_service.model.weights import expected_tensors
from jrm_training.init_checkpoint import PIXELS

NAME = "Qwen3-VL-8B-Instruct"
TOKENS, ROWS = 151_669, 151_936  # of the tokenizer; of the embedding, which has rows to spare
# The ids of the real tokenizer.
SPECIAL = {
    151_643: "<|endoftext|>",
    151_644: "<|im_start|>",
    151_645: "<|im_end|>",
    151_652: "<|vision_start|>",
    151_653: "<|vision_end|>",
    151_655: "<|image_pad|>",
    151_656: "<|video_pad|>",
}
_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "rope_scaling": {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [2, 1, 1]},
}
_VISION = {
    "depth": 4,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "out_hidden_size": 32,
    "deepstack_visual_indexes": [0, 1, 2],
}


def config(*, cut: bool) -> dict[str, Any]:
    """``config.json`` with the shapes of 8B, or with few and narrow layers."""
    whole = json.loads(json.dumps(SHAPES["8b"].config))
    architecture = {"architectures": ["Qwen3VLForConditionalGeneration"], "transformers_version": "4.57.0.dev0"}
    text = whole["text_config"] | {"bos_token_id": 151_643, "eos_token_id": 151_645} | (_TEXT if cut else {})
    return (
        architecture | whole | {"text_config": text, "vision_config": whole["vision_config"] | (_VISION if cut else {})}
    )


def write_base(path: Path) -> Path:
    """The cut model with random weights in bfloat16."""
    path.mkdir(parents=True)
    write_tokenizer(path)
    write_settings(path, config(cut=True))
    random = torch.Generator().manual_seed(0)
    shapes = expected_tensors(Qwen3VLConfig.from_dict(config(cut=True)))
    tensors = {
        name: torch.ones(shape, dtype=torch.bfloat16)
        if "norm" in name and name.endswith("weight")
        else (torch.randn(shape, generator=random) / math.sqrt(math.prod(shape[1:]) if shape[1:] else 64)).bfloat16()
        for name, shape in shapes.items()
    }
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


def without_weights(start: Path, out: Path) -> Path:
    """What ``jrm init`` made of the cut model, as it would be for the whole one, less all tensors."""
    shutil.copytree(start, out, ignore=shutil.ignore_patterns("*.safetensors"))
    (out / "config.json").write_text(json.dumps(config(cut=False)))
    for name, key, sizes in (
        ("reward/manifest.json", "image", {"min_pixels": PIXELS, "max_pixels": PIXELS}),
        ("preprocessor_config.json", "size", {"shortest_edge": PIXELS, "longest_edge": PIXELS}),
    ):
        content = json.loads((out / name).read_text())
        content[key] |= sizes
        (out / name).write_text(json.dumps(content))
    return out


def write_settings(path: Path, config: dict[str, Any]) -> None:
    """``config.json`` and the files of the processors, as the hub has them."""
    rules = {
        "patch_size": 16,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    sizes = {"size": {"shortest_edge": 65_536, "longest_edge": 16_777_216}}
    image = {"processor_class": "Qwen3VLProcessor", "image_processor_type": "Qwen2VLImageProcessorFast"}
    video = {"processor_class": "Qwen3VLProcessor", "video_processor_type": "Qwen3VLVideoProcessor"}
    for name, content in (
        ("config.json", config),
        ("preprocessor_config.json", rules | sizes | image),
        (
            "video_preprocessor_config.json",
            rules | {"size": {"shortest_edge": 4096, "longest_edge": 25_165_824}} | video,
        ),
    ):
        (path / name).write_text(json.dumps(content))


def write_tokenizer(path: Path) -> None:
    """Qwen's own class and as many tokens: it splits the paper's prompts about as finely, and most are never used."""
    letters = pre_tokenizers.ByteLevel.alphabet()
    qwen = Qwen2Tokenizer(vocab={letter: n for n, letter in enumerate(sorted(letters))}, merges=[]).backend_tokenizer
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer, trained.normalizer = qwen.pre_tokenizer, qwen.normalizer
    words = trainers.BpeTrainer(vocab_size=1500, initial_alphabet=letters, show_progress=False)
    trained.train_from_iterator([re.sub(r"<\|\w+\|>", " ", text) for text in default_prompts().values()], words)
    learned = json.loads(trained.to_str())["model"]
    vocabulary = dict(learned["vocab"])
    special = [SPECIAL.get(number, f"<|unused_{number}|>") for number in range(min(SPECIAL), TOKENS)]
    vocabulary |= {f"<unused {number}>": number for number in range(len(vocabulary), min(SPECIAL))}
    vocabulary |= {token: number for number, token in enumerate(special, min(SPECIAL))}
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=[tuple(merge) for merge in learned["merges"]],
        eos_token="<|im_end|>",
        extra_special_tokens=special,
        model_max_length=262_144,
    )
    tokenizer.chat_template = CHAT_TEMPLATES["qwen3_vl"]
    tokenizer.save_pretrained(path)
