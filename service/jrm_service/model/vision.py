"""Images through the vision tower: prepared on the host, encoded together in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import Qwen3VLVisionModel
from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

from jrm_service.images import preprocess
from jrm_service.images.preprocess import ImageSpec

from .attention import IMAGE_ATTENTION, packed_images
from .features import Features
from .varlen import Kernel


@dataclass(frozen=True, slots=True)
class ImageInputs:
    """One image as the vision tower takes it, on the host.

    ``patches`` float32 [P, 3·2·16·16]; ``taps`` int64 and ``weights`` float32 [P, 4] interpolate the learned table of
    positions; ``positions`` int64 [P, 2] are rows and columns. The tower could work out all but the patches by itself,
    but it would ask the device for the size of every image, and the host would wait for the answer.
    """

    patches: torch.Tensor
    taps: torch.Tensor
    weights: torch.Tensor
    positions: torch.Tensor

    def pin(self) -> ImageInputs:
        """The same in memory from which a GPU copies without the host waiting."""
        return ImageInputs(*(t.pin_memory() for t in (self.patches, self.taps, self.weights, self.positions)))


class VisionTower:
    """transformers' vision tower, with images that attend to themselves in as few calls as the device allows."""

    def __init__(self, visual: Qwen3VLVisionModel, spec: ImageSpec, kernel: Kernel | None = None) -> None:
        """``kernel``: see ``find_kernel``."""
        self._visual = visual
        self._spec = spec
        self._kernel = kernel
        visual.config._attn_implementation = IMAGE_ATTENTION
        self._tables = lru_cache(maxsize=256)(self._tables_of)  # most images of a job have one size

    def inputs(self, pixels: npt.NDArray[np.uint8]) -> ImageInputs:
        """Prepare the pixels of an ``Image``. Host work."""
        patches = torch.from_numpy(preprocess.patches(pixels, self._spec))
        return ImageInputs(patches, *self._tables(preprocess.grid(pixels, self._spec)))

    def _tables_of(self, size: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """``taps``, ``weights`` and ``positions`` of an image of so many frames, rows and columns of patches."""
        visual, grid = self._visual, torch.tensor([size])
        taps, weights = get_vision_interpolation_indices_and_weights(
            grid,
            num_grid_per_side=visual.num_grid_per_side,
            mode=visual.interpolation_mode,
            align_corners=visual.interpolation_align_corners,
            spatial_merge_size=visual.spatial_merge_size,
        )
        return taps, weights, get_vision_position_ids(grid, visual.spatial_merge_size)

    def encode(self, images: Sequence[ImageInputs]) -> list[Features]:
        """Features of every image, in order. The host does not wait for the device."""
        visual, device = self._visual, self._visual.device

        def packed(field: str) -> torch.Tensor:
            # Joined on the device: on the host it would be one more copy of every patch, while the device waits.
            return torch.cat([getattr(one, field).to(device, non_blocking=True) for one in images])

        sizes = [len(one.patches) for one in images]
        output: Any = visual(
            packed("patches").to(visual.dtype),
            grid_thw=None,  # all that is made of it is given
            interp_indices=packed("taps"),
            interp_weights=packed("weights"),
            position_ids=packed("positions"),
            # One piece, on the host: what each patch sees is for our attention to say.
            cu_seqlens=torch.tensor([0, sum(sizes)], dtype=torch.int32),
            images=packed_images(sizes, device, self._kernel),
            return_dict=True,
        )
        tokens = [size // visual.spatial_merge_size**2 for size in sizes]
        layers = [output.pooler_output, *output.deepstack_features]
        by_image = zip(*(layer.split(tokens) for layer in layers), strict=True)
        return [Features(embeds, tuple(deepstack)) for embeds, *deepstack in by_image]
