"""Where the tiny model starts: an untrained Qwen3-VL of a few million parameters that fits the synthetic world."""

from __future__ import annotations

import contextlib
import json
import math
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from jrm_service.model.checkpoint import Checkpoint, open_checkpoint
from jrm_service.model.checkpoint_files import write_json
from jrm_service.model.heads import RewardHeads
from jrm_service.model.manifest import FORMAT, Manifest
from jrm_service.model.statedict import save_tensors
from jrm_service.model.tiny import SPECIAL_TOKENS, write_preprocessors
from jrm_service.model.tiny_shapes import CHAT_TEMPLATES

from .init_checkpoint import REGION_TOKENS
from .model import JointModel
from .vision_pretraining import pretrain_vision
from .world import World

NAME = "jrm-tiny"
PATCH = 8
VISION_STEPS = 6000
MANIFEST: dict[str, Any] = {
    "format": FORMAT,
    "name": NAME,
    "reward_token": "<|Reward|>",
    "image": {"min_pixels": 64 * 64, "max_pixels": 64 * 64, "resample": "bicubic", "max_sources": 2},
    "passes": [
        {
            "parts": ["source", "edited", "prompt"],
            "prompt": "{instruction} <|Reward|>\n",
            "read": {"instruction_following": "head_0"},
        },
        {
            "parts": ["source", "edited", "prompt"],
            "prompt": "Quality? <|Reward|>\n",
            "read": {"visual_quality": "head_1"},
        },
    ],
    "heads": {
        "head_0": {"hidden": [64], "outputs": ["mean", "log_std"]},
        "head_1": {"hidden": [64], "outputs": ["mean", "log_std"]},
    },
    "reward": {"combine": "mean", "weights": {"instruction_following": 1.0, "visual_quality": 1.0}},
    "explain": {
        "instruction_following": {"template": None, "regions": True},
        "visual_quality": {"template": None, "regions": False},
    },
    "provenance": {"base": None},
}
_VOCABULARY = 560
_TOKENIZER_SEED = 99


def write_start(
    path: Path,
    seed: int = 0,
    *,
    vision_steps: int = 0,
    on_step: Callable[[int, float, float], None] = lambda *_: None,
) -> Checkpoint:
    """Write a checkpoint to start from, equal for equal arguments on one machine, and return it, opened.

    Its vision tower is trained for ``vision_steps`` (``pretrain_vision``, which calls ``on_step``); all else is random.
    The folder appears when it is complete. An existing folder is left alone: if several processes race, all of them get
    the first one's.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
            draft = Path(folder) / path.name
            _write(draft, seed)
            if vision_steps:
                _pretrain_vision(draft, seed, vision_steps, on_step)
            with contextlib.suppress(OSError):  # another process was first; opening says whether that is so
                draft.rename(path)
    return open_checkpoint(path)


def _pretrain_vision(path: Path, seed: int, steps: int, on_step: Callable[[int, float, float], None]) -> None:
    checkpoint = open_checkpoint(path)
    model = JointModel.load(checkpoint)
    pretrain_vision(model, checkpoint, steps=steps, seed=seed, on_step=on_step)
    tensors, _ = model.split({name: weight.detach() for name, weight in model.state_dict().items()})
    save_tensors(tensors, path / "model.safetensors")
    write_json(path / "reward" / "manifest.json", {**MANIFEST, "provenance": {"base": None, "eyes": {"steps": steps}}})


def _write(path: Path, seed: int) -> None:
    (path / "reward").mkdir(parents=True)
    tokenizer = _tokenizer()
    tokenizer.save_pretrained(path)
    config = _config(tokenizer)
    write_json(path / "config.json", config)
    manifest = Manifest.model_validate(MANIFEST)
    write_preprocessors(path, manifest, patch_size=PATCH)
    write_json(path / "reward" / "manifest.json", MANIFEST)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(Qwen3VLConfig.from_dict(config))
        heads = RewardHeads(manifest, config["text_config"]["hidden_size"])
        _initialize(model)
    tensors = {f"model.{name}": weight.detach() for name, weight in model.model.named_parameters()}
    save_tensors(tensors, path / "model.safetensors")
    save_tensors(heads.tensors(), path / "reward" / "heads.safetensors")


def _initialize(model: Qwen3VLForConditionalGeneration) -> None:
    """Scale matrices by their fan-in; what adds to the residual stream begins small. The library's 0.02 is for 8B."""
    for name, weight in model.named_parameters():
        if weight.ndim < 2:
            continue
        std = 1 / math.sqrt(math.prod(weight.shape[1:]))
        if name.endswith(("o_proj.weight", "down_proj.weight", "attn.proj.weight", "mlp.linear_fc2.weight")):
            std *= 0.4
        elif "embed_tokens" in name:
            std = 0.05  # also the language head
        elif "pos_embed" in name:
            std = 0.3
        torch.nn.init.normal_(weight, 0, std)


def _tokenizer() -> Qwen2Tokenizer:
    """Byte-level BPE trained on the world's sentences, in Qwen's own class so that every loader tokenizes alike."""
    letters = pre_tokenizers.ByteLevel.alphabet()
    qwen = Qwen2Tokenizer(vocab={letter: n for n, letter in enumerate(sorted(letters))}, merges=[]).backend_tokenizer
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer, trained.normalizer = qwen.pre_tokenizer, qwen.normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY, initial_alphabet=letters, show_progress=False, min_frequency=20
    )
    trained.train_from_iterator(_sentences(), trainer)
    learned = json.loads(trained.to_str())["model"]
    vocabulary = dict(learned["vocab"])
    special = [*SPECIAL_TOKENS, *REGION_TOKENS]
    vocabulary |= {token: len(vocabulary) + number for number, token in enumerate(special)}
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=[tuple(merge) for merge in learned["merges"]],
        eos_token="<|im_end|>",  # noqa: S106 - a vocabulary entry
        extra_special_tokens=special,
        model_max_length=2048,
    )
    tokenizer.chat_template = CHAT_TEMPLATES["qwen3_vl"]
    return tokenizer


def _sentences() -> list[str]:
    texts = ["Quality? ", "user\n", "assistant\n"] * 50
    world = World(1500, seed=_TOKENIZER_SEED)
    for number in range(len(world)):
        texts += [re.sub(r"<\|\w+\|>", " ", text) for text in world.texts(number)]
    return texts


def _config(tokenizer: Qwen2Tokenizer) -> dict[str, Any]:
    """A Qwen3-VL in small.

    ``rope_theta`` is low because all distances are: attention compares the same patch of two images by its distance,
    and the usual theta would leave one slow frequency each for rows and columns to do it with.
    """
    ids = tokenizer.get_vocab()
    hidden, head = 160, 32
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "dtype": "float32",
        "tie_word_embeddings": True,
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "text_config": {
            "model_type": "qwen3_vl_text",
            "vocab_size": len(tokenizer),
            "hidden_size": hidden,
            "intermediate_size": 416,
            "num_hidden_layers": 5,
            "num_attention_heads": hidden // head,
            "num_key_value_heads": hidden // head,
            "head_dim": head,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 2048,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "tie_word_embeddings": True,
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "rope_theta": 30.0,
            "rope_scaling": {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [6, 5, 5]},
        },
        "vision_config": {
            "model_type": "qwen3_vl_vision",
            "depth": 3,
            "hidden_size": 96,
            "intermediate_size": 288,
            "num_heads": 3,
            "in_channels": 3,
            "patch_size": PATCH,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": hidden,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
            "hidden_act": "gelu_pytorch_tanh",
        },
    }
