"""The published reward models' architectures: what the counted work shows beside the paper's."""

from __future__ import annotations

from typing import Any

from .shapes import Shape

_IDS = {
    "tie_word_embeddings": False,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
}
_TEXT: dict[str, Any] = {
    "vocab_size": 151666,  # the tokenizer and the reward token: the published code shrinks the embedding to them
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "rope_theta": 1000000,
    "rope_scaling": {"rope_type": "default", "mrope_section": [16, 24, 24]},
}
_VISION = {"depth": 32, "num_heads": 16, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
_WINDOWED = _VISION | {
    "model_type": "qwen2_5_vl_vision",
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}

PUBLISHED = {
    # EditReward on Qwen2.5-VL-7B-Instruct.
    "qwen2.5-vl-7b": Shape(
        _IDS
        | {
            "model_type": "qwen2_5_vl",
            "text_config": _TEXT | {"model_type": "qwen2_5_vl_text"},
            "vision_config": _WINDOWED | {"out_hidden_size": 3584},
        },
        side=448,
    ),
    # EditReward on MiMo-VL-7B-SFT-2508: the same class, a narrower and deeper language model.
    "mimo-vl-7b": Shape(
        _IDS
        | {
            "model_type": "qwen2_5_vl",
            "text_config": _TEXT
            | {
                "model_type": "qwen2_5_vl_text",
                "hidden_size": 4096,
                "intermediate_size": 11008,
                "num_hidden_layers": 36,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
            },
            "vision_config": _WINDOWED | {"out_hidden_size": 4096},
        },
        side=448,
    ),
    # HPSv3, on Qwen2-VL-7B-Instruct.
    "qwen2-vl-7b": Shape(
        _IDS
        | {
            "model_type": "qwen2_vl",
            "text_config": _TEXT | {"model_type": "qwen2_vl_text"},
            "vision_config": _VISION
            | {"model_type": "qwen2_vl_vision", "embed_dim": 1280, "hidden_size": 3584, "mlp_ratio": 4},
        },
        side=448,
        layouts=("one image",),
    ),
}
"""By the base model; images of 200,704 pixels are 256 tokens of 28 x 28."""
