"""Qwen2-VL: only rotary positions in the vision tower, and every patch sees its whole image."""

from __future__ import annotations

from typing import ClassVar

from transformers import Qwen2VLConfig, Qwen2VLModel

from .family import Config, Family, text_head_dim

MROPE_SECTION = [16, 24, 24]  # transformers' default


class Qwen2VL(Family):
    """Qwen2-VL."""

    name = "Qwen2-VL"
    config_class = Qwen2VLConfig
    backbone_class = Qwen2VLModel
    architecture = "Qwen2VLForConditionalGeneration"
    processor_class = "Qwen2VLProcessor"
    width_key = "embed_dim"
    feature_key = "hidden_size"
    vision_sizes: ClassVar[tuple[str, ...]] = ("embed_dim", "mlp_ratio")
    flat_text = True
    video_processor = "Qwen2VLVideoProcessor"

    def problems(self, config: Config) -> list[str]:
        """Heads must divide the hidden states; layers that see only a window of the sequence are not implemented."""
        text = config.text_config
        problems = []
        if text.hidden_size % text.num_attention_heads:
            problems.append(
                f"hidden_size is {text.hidden_size}, must be a multiple of num_attention_heads "
                f"({text.num_attention_heads})"
            )
        elif "mrope_section" not in (text.rope_parameters or {}) and 2 * sum(MROPE_SECTION) != text_head_dim(config):
            problems.append(
                f"rope_scaling.mrope_section is missing; its default {MROPE_SECTION} is for heads of "
                f"{2 * sum(MROPE_SECTION)}, here they have {text_head_dim(config)}"
            )
        if "sliding_attention" in text.layer_types:
            problems.append("use_sliding_window is true: sliding windows are not served")
        return problems
