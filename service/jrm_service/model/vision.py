"""The vision tower: images are cut into patches, normalized and encoded together on the device, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.functional import linear

from jrm_service.images import preprocess
from jrm_service.images.preprocess import ImageSpec

from .attention import IMAGE_ATTENTION, PackedImages, packed_images
from .families import Family, ImageTables
from .features import Features
from .varlen import Kernel


class PatchProduct(nn.Module):
    """A patch embedding as a matrix product, which it is: patches do not overlap, so the convolution only flattens.

    It shares the convolution's weights, under their names. On a GPU cuDNN runs a float32 convolution in TF32 by
    default, which moved scores by 8.9e-4.
    """

    def __init__(self, convolution: nn.Conv3d) -> None:
        super().__init__()
        self.proj = convolution

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """[P, channels · time · patch · patch] -> [P, width]."""
        weight, bias = self.proj.weight, self.proj.bias
        return linear(patches.to(weight.dtype), weight.flatten(1), bias)


def use_patch_product(visual: Any) -> None:
    """Make a vision tower of transformers embed its patches by a matrix product. A second call changes nothing."""
    visual.patch_embed = PatchProduct(visual.patch_embed.proj)


class VisionTower:
    """transformers' vision tower, with images that attend to themselves in as few calls as the device allows."""

    def __init__(self, visual: Any, family: Family, spec: ImageSpec, kernel: Kernel | None = None) -> None:
        """``visual`` is the family's vision tower; ``kernel``: see ``find_kernel``."""
        use_patch_product(visual)
        self._visual = visual
        self._family = family
        self._spec = spec
        self._kernel = kernel
        visual.config._attn_implementation = IMAGE_ATTENTION
        family.prepare(visual)
        # Of functions, not of methods: a cycle would keep the weights on the device after the last use of the tower.
        self._tables = lru_cache(maxsize=256)(partial(_tables_of, family, visual))  # most images of a job have one size
        self._levels = lru_cache(maxsize=1)(partial(_levels_of, spec))

    def inputs(self, pixels: npt.NDArray[np.uint8]) -> torch.Tensor:
        """The pixels of an ``Image``, uint8 [H, W, 3], as input of ``encode``. Host work."""
        return torch.tensor(pixels)  # a copy: an array from another process may be read-only

    def encode(self, images: Sequence[torch.Tensor]) -> list[Features]:
        """Features of every image, in order, from its ``inputs``. The host does not wait for the device."""
        visual, device = self._visual, self._visual.device
        tables = [self._tables(preprocess.grid(pixels, self._spec), device) for pixels in images]

        def packed(lengths: Sequence[int]) -> PackedImages:
            return packed_images(lengths, device, self._kernel)

        sizes = [table.patches for table in tables]
        output: Any = visual(
            self.patches(images),
            grid_thw=None,  # everything derived from it is passed instead
            **self._family.arguments(tables, packed),
            # One sequence, on the host: our attention decides what each patch sees.
            cu_seqlens=torch.tensor([0, sum(sizes)], dtype=torch.int32),
            images=packed(sizes),
            return_dict=True,
        )
        tokens = [size // visual.spatial_merge_size**2 for size in sizes]
        layers = [output.pooler_output, *output.get("deepstack_features", ())]  # DeepStack, if the family has it
        by_image = zip(*(layer.split(tokens) for layer in layers), strict=True)
        return [Features(embeds, tuple(deepstack)) for embeds, *deepstack in by_image]

    def patches(self, images: Sequence[torch.Tensor]) -> torch.Tensor:
        """The patches of every image as in ``preprocess.patches``, concatenated, on the device in the tower's dtype.

        uint8 pixels are copied there and reordered: an eighth of the bytes of float32 patches, which hold a still image
        twice.
        """
        spec, device = self._spec, self._visual.device
        pixels = torch.cat([self._cut(image.to(device, non_blocking=True)) for image in images])
        # The channels' tables are concatenated.
        index = pixels.int() + torch.arange(0, 3 * 256, 256, dtype=torch.int32, device=device)[:, None]
        values = self._levels(device, self._visual.dtype).index_select(0, index.flatten()).view(*pixels.shape)
        return values[:, :, None].expand(-1, -1, spec.temporal_patch_size, -1).flatten(1)

    def forget(self) -> None:
        """Drop the tables on the device; they are made again when needed."""
        self._tables.cache_clear()
        self._levels.cache_clear()

    def _cut(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 [H, W, 3] -> [P, 3, patch · patch], the patches of a merge block next to each other."""
        patch, merge = self._spec.patch_size, self._spec.merge_size
        rows, columns = (side // (merge * patch) for side in pixels.shape[:2])
        blocks = pixels.view(rows, merge, patch, columns, merge, patch, 3)
        return blocks.permute(0, 3, 1, 4, 6, 2, 5).reshape(-1, 3, patch * patch)


# Neither may be an inference tensor: training, which evaluates in between, could not differentiate with it.


@torch.inference_mode(False)
def _levels_of(spec: ImageSpec, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """[3 · 256]: the normalized value of each level of each channel."""
    return torch.tensor(preprocess.levels(spec.mean, spec.std)).flatten().to(device, dtype)


@torch.inference_mode(False)
def _tables_of(family: Family, visual: Any, size: tuple[int, int, int], device: torch.device) -> ImageTables:
    """The tables of an image with this number of frames, rows and columns of patches."""
    return family.tables(visual, size).to(device)
