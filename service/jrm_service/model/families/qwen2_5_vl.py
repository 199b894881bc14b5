"""Qwen2.5-VL, and MiMo-VL, which is the same class in other sizes: most vision blocks see only a window."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, Qwen2_5_VLConfig, Qwen2_5_VLModel
from transformers.vision_utils import get_vision_window_index

from jrm_service.model.attention import PackedImages, attend_within_images

from .family import Config, ImageTables
from .qwen2_vl import Qwen2VL

WINDOW_ATTENTION = "jrm_windows"


class Qwen25VL(Qwen2VL):
    """Qwen2.5-VL. Its language model is Qwen2-VL's."""

    name = "Qwen2.5-VL"
    config_class = Qwen2_5_VLConfig
    backbone_class = Qwen2_5_VLModel
    architecture = "Qwen2_5_VLForConditionalGeneration"
    processor_class = "Qwen2_5_VLProcessor"
    width_key = "hidden_size"
    feature_key = "out_hidden_size"
    vision_sizes = ("intermediate_size", "out_hidden_size", "window_size")

    def problems(self, config: Config) -> list[str]:
        """A window must hold at least one merged token, and whole-image blocks must be listed by number."""
        vision = config.vision_config
        problems = super().problems(config)
        side = vision.patch_size * vision.spatial_merge_size
        if vision.window_size < side:
            problems.append(
                f"vision_config.window_size is {vision.window_size}, must be at least the {side} pixels of a token"
            )
        blocks = vision.fullatt_block_indexes
        if not isinstance(blocks, list | tuple) or not all(type(block) is int for block in blocks):
            problems.append(f"vision_config.fullatt_block_indexes is {blocks!r:.60}, must be a list of numbers")
        return problems

    def prepare(self, visual: Any) -> None:
        """Give blocks that see a window an attention of their own: the tower distinguishes them by lengths on the
        device, which the host would have to wait for.
        """
        windowed = copy.copy(visual.config)
        windowed._attn_implementation = WINDOW_ATTENTION
        for number, block in enumerate(visual.blocks):
            if number not in visual.fullatt_block_indexes:
                block.attn.config = windowed

    def tables(self, visual: Any, size: tuple[int, int, int]) -> ImageTables:
        """Rows and columns of the patches, and the windows, which are smaller at the edges; without empty windows."""
        order, ends = get_vision_window_index(
            torch.tensor([size]),
            spatial_merge_size=visual.spatial_merge_size,
            window_size=visual.window_size,
            patch_size=visual.patch_size,
        )
        return replace(super().tables(visual, size), order=order, windows=tuple(ends.diff().tolist()))

    def arguments(
        self, tables: Sequence[ImageTables], packed: Callable[[Sequence[int]], PackedImages]
    ) -> dict[str, Any]:
        """The arguments of every family, and all windows of all images."""
        orders, tokens = [], 0
        for table in tables:
            assert table.order is not None
            orders.append(table.order + tokens)
            tokens += len(table.order)
        return super().arguments(tables, packed) | {
            "window_index": torch.cat(orders),
            # One sequence, on the host, like ``cu_seqlens``: ``windows`` decides what a patch sees.
            "cu_window_seqlens": torch.tensor([0, sum(table.patches for table in tables)], dtype=torch.int32),
            "windows": packed([window for table in tables for window in table.windows]),
        }


def attend_within_windows(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    windows: PackedImages,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Every patch sees its own window, as it sees its own image in ``attend_within_images``."""
    return attend_within_images(module, query, key, value, attention_mask, **others | {"images": windows})


AttentionInterface.register(WINDOW_ATTENTION, attend_within_windows)
