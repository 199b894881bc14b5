"""The configuration of a tiny backbone of each family, in full: transformers' defaults may change, these must not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CLIP = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
_CENTRED = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}

_TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 8192,
    "attention_dropout": 0.0,
    "rope_theta": 10000.0,
}
_VISION: dict[str, Any] = {
    "depth": 3,
    "num_heads": 4,
    "in_channels": 3,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
_WIDE_HEADS = {  # of 32: vLLM has no kernel for narrower ones on a CPU
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rope_scaling": {"rope_type": "default", "mrope_section": [4, 6, 6]},
}

TEXT: dict[str, dict[str, Any]] = {
    "qwen3_vl": _TEXT
    | {
        "model_type": "qwen3_vl_text",
        "head_dim": 16,
        "attention_bias": False,
        "rope_scaling": {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [4, 2, 2]},
    },
    "qwen2_5_vl": _TEXT | _WIDE_HEADS | {"model_type": "qwen2_5_vl_text"},
    "qwen2_vl": _TEXT | _WIDE_HEADS | {"model_type": "qwen2_vl_text"},
}
VISION: dict[str, dict[str, Any]] = {
    "qwen3_vl": _VISION
    | {
        "model_type": "qwen3_vl_vision",
        "hidden_size": 64,
        "intermediate_size": 128,
        "patch_size": 16,
        "out_hidden_size": 64,
        "num_position_embeddings": 256,
        "deepstack_visual_indexes": [0, 1],
        "hidden_act": "gelu_pytorch_tanh",
    },
    "qwen2_5_vl": _VISION
    | {
        "model_type": "qwen2_5_vl_vision",
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_heads": 3,
        "patch_size": 14,
        "out_hidden_size": 64,
        "window_size": 112,
        "fullatt_block_indexes": [1],  # the last block sees windows only
        "hidden_act": "silu",
    },
    "qwen2_vl": _VISION
    | {
        "model_type": "qwen2_vl_vision",
        "embed_dim": 48,
        "hidden_size": 64,  # the language model's
        "mlp_ratio": 2,
        "num_heads": 3,
        "patch_size": 14,
        "hidden_act": "quick_gelu",
    },
}
NORMALIZATION = {"qwen3_vl": _CENTRED, "qwen2_5_vl": CLIP, "qwen2_vl": CLIP}
"""``image_mean`` and ``image_std`` of ``preprocessor_config.json``."""

_TURNS = (
    "{{% for message in messages %}}{system}{{{{ '<|im_start|>' + message.role + '\\n' }}}}"
    "{{% if message.content is string %}}{{{{ message.content }}}}{{% else %}}"
    "{{% for part in message.content %}}{{% if part.type == 'image' %}}"
    "{{{{ '<|vision_start|><|image_pad|><|vision_end|>' }}}}"
    "{{% else %}}{{{{ part.text }}}}{{% endif %}}{{% endfor %}}{{% endif %}}"
    "{{{{ '<|im_end|>\\n' }}}}{{% endfor %}}"
    "{{% if add_generation_prompt %}}{{{{ '<|im_start|>assistant\\n' }}}}{{% endif %}}"
)
_SYSTEM = (
    "{% if loop.first and message.role != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
)
_PLAIN_TURNS, _TURNS_AFTER_SYSTEM = _TURNS.format(system=""), _TURNS.format(system=_SYSTEM)
CHAT_TEMPLATES: Mapping[str, str] = {
    "qwen3_vl": _PLAIN_TURNS,
    "qwen2_5_vl": _TURNS_AFTER_SYSTEM,
    "qwen2_vl": _TURNS_AFTER_SYSTEM,
}
"""Like each family's own: those of Qwen2 add a system turn if there is none."""
