"""Qwen3-VL: a learned table of positions, and DeepStack features for the first layers of the language model."""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import Qwen3VLConfig, Qwen3VLModel
from transformers.vision_utils import get_vision_interpolation_indices_and_weights

from .family import Config, Family, ImageTables


class Qwen3VL(Family):
    """Qwen3-VL, dense."""

    name = "Qwen3-VL"
    config_class = Qwen3VLConfig
    backbone_class = Qwen3VLModel
    architecture = "Qwen3VLForConditionalGeneration"
    processor_class = "Qwen3VLProcessor"
    vision_sizes = ("intermediate_size", "out_hidden_size", "num_position_embeddings")

    def tables(self, visual: Any, size: tuple[int, int, int]) -> ImageTables:
        """Rows and columns of the patches, and how the learned table of positions is interpolated at each."""
        taps, weights = get_vision_interpolation_indices_and_weights(
            torch.tensor([size]),
            num_grid_per_side=visual.num_grid_per_side,
            mode=visual.interpolation_mode,
            align_corners=visual.interpolation_align_corners,
            spatial_merge_size=visual.spatial_merge_size,
        )
        rows_and_columns = super().tables(visual, size)
        by_patch = {**rows_and_columns.by_patch, "interp_indices": taps, "interp_weights": weights}
        return ImageTables(rows_and_columns.patches, by_patch)

    def problems(self, config: Config) -> list[str]:
        """The table of positions must be a square, and DeepStack must use existing layers of both models."""
        text, vision = config.text_config, config.vision_config
        problems = []
        if math.isqrt(vision.num_position_embeddings) ** 2 != vision.num_position_embeddings:
            problems.append(
                f"vision_config.num_position_embeddings is {vision.num_position_embeddings}, must be a square number"
            )
        taken, last = list(vision.deepstack_visual_indexes), vision.depth - 1
        key = "vision_config.deepstack_visual_indexes"
        if not all(type(index) is int and 0 <= index <= last for index in taken) or len(set(taken)) != len(taken):
            problems.append(f"{key} is {taken!r:.60}, must be different layers from 0 to {last}")
        elif taken != sorted(taken):
            problems.append(f"{key} is {taken!r:.60}, must be in ascending order")
        elif len(taken) > text.num_hidden_layers:
            problems.append(
                f"{key} names {len(taken)} layers, text_config has only {text.num_hidden_layers} to add them to"
            )
        return problems
