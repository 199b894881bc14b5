"""The interface of a family of backbones: everything that the shared trie, attention and vision code need of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.vision_utils import get_vision_position_ids

from jrm_service.model.attention import PackedImages

Config = Any
"""A transformers configuration with the parts ``text_config`` and ``vision_config``; it has no type for that."""


@dataclass(frozen=True, slots=True)
class ImageTables:
    """Arguments of a vision tower that depend only on an image's size.

    The tower could compute them itself, but it would read the size of every image from the device, and the host would
    wait. ``patches`` is the number of patches; ``by_patch`` are arguments of the tower's forward whose first axis is
    the patches, so that those of several images are concatenated. If blocks attend within windows, ``order`` int64
    [tokens] is the order in which the windows take the merged tokens, and ``windows`` the number of patches of each.
    """

    patches: int
    by_patch: Mapping[str, torch.Tensor]
    order: torch.Tensor | None = None
    windows: tuple[int, ...] = ()

    def to(self, device: torch.device) -> ImageTables:
        """The same on a device."""
        by_patch = {name: table.to(device, non_blocking=True) for name, table in self.by_patch.items()}
        order = None if self.order is None else self.order.to(device, non_blocking=True)
        return ImageTables(self.patches, by_patch, order, self.windows)


class Family:
    """One kind of backbone, as transformers builds it, by the ``model_type`` of its configuration."""

    name: ClassVar[str]
    """Its usual name."""
    config_class: ClassVar[type[PreTrainedConfig]]
    backbone_class: ClassVar[type[PreTrainedModel]]
    """The model without its language head: ``visual`` and ``language_model``."""
    architecture: ClassVar[str]
    """The class with the language head, as ``config.json`` and vLLM name it."""
    processor_class: ClassVar[str]
    """As ``preprocessor_config.json`` names it."""
    width_key: ClassVar[str] = "hidden_size"
    """Key of ``vision_config`` for the width of the vision tower's hidden states."""
    feature_key: ClassVar[str] = "out_hidden_size"
    """Key of ``vision_config`` for the width of its features, which is the language model's."""
    vision_sizes: ClassVar[tuple[str, ...]]
    """Keys of ``vision_config`` that must be whole numbers, in addition to those of every family."""
    flat_text: ClassVar[bool] = False
    """Whether ``config.json`` may have the language model's keys at the top level, as older files on the hub do."""

    video_processor: ClassVar[str | None] = None
    """The class that reads videos, for families whose stock folders have no ``video_preprocessor_config.json``."""

    @property
    def model_type(self) -> str:
        """As ``config.json`` names the family."""
        return str(self.config_class.model_type)

    def vision_width(self, vision: Config) -> int:
        """Width of the vision tower's hidden states."""
        return int(getattr(vision, self.width_key))

    def problems(self, config: Config) -> list[str]:
        """Problems of a ``config`` that builds, but fails or means something else in this family's forward pass."""
        return []

    def prepare(self, visual: Any) -> None:
        """Change a vision tower before its first forward. A second call changes nothing."""

    def tables(self, visual: Any, size: tuple[int, int, int]) -> ImageTables:
        """The tables of an image with this number of frames, rows and columns of patches, on the host."""
        positions = get_vision_position_ids(torch.tensor([size]), visual.spatial_merge_size)
        return ImageTables(len(positions), {"position_ids": positions})

    def arguments(
        self, tables: Sequence[ImageTables], packed: Callable[[Sequence[int]], PackedImages]
    ) -> dict[str, Any]:
        """Arguments of the tower's forward for images of these sizes, apart from patches and attention to whole images.

        ``packed`` makes the description of consecutive patches that attend to each other from the lengths of the runs.
        """
        return {name: torch.cat([table.by_patch[name] for table in tables]) for name in tables[0].by_patch}


def text_head_dim(config: Config) -> int:
    """The width of an attention head of the language model."""
    text = config.text_config
    return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
