"""The matrix products of a decoder layer: linear layers with the same input as one product, in their dtype or in fp8.

In fp8 every token and every output has a scale of its own, its largest absolute value over 448, which is the largest
number of float8_e4m3fn. Tokens are rounded on the fly, weights once. A product in fp8 is torch's own on a GPU; on a
CPU it is simulated: the same numbers are rounded, and multiplied in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import nn
from torch.nn.functional import linear

from jrm_service.errors import CheckpointError

FP8 = torch.float8_e4m3fn
LARGEST = 448.0  # of FP8
_LEAST_SCALE = 1e-12  # of a token that is all zeros
_FP8_CAPABILITY = (8, 9)
_MULTIPLE = 16  # both sides of a weight must be multiples of it
_TOLERANCE = 0.02  # of a product's largest number: rounding to bfloat16, and sums that a GPU keeps in fewer bits

Operand = torch.Tensor | tuple[torch.Tensor, torch.Tensor]
"""The left side of a product: tokens, or tokens in fp8 with their scales."""


class Product(Protocol):
    """Several linear layers with the same input, outputs side by side: [..., inputs] -> [..., outputs of all]."""

    def __call__(self, operand: Operand) -> torch.Tensor: ...  # noqa: D102


class Merged(nn.Module):
    """Linear layers with the same input as one product, in their own dtype."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        weights: list[torch.Tensor] = [layer.weight for layer in layers]
        biases: list[torch.Tensor] = [layer.bias for layer in layers if layer.bias is not None]
        self.register_buffer("weight", torch.cat(weights))
        self.register_buffer("bias", torch.cat(biases) if biases else None)

    def forward(self, operand: torch.Tensor) -> torch.Tensor:  # noqa: D102 - see Product
        return linear(operand, self.weight, self.bias)


class ScaledFP8(nn.Module):
    """Linear layers with the same input as one product of fp8 numbers on a GPU, with a result in bfloat16."""

    weight: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        """Raise CheckpointError for a weight whose sides an fp8 product cannot take."""
        super().__init__()
        merged = Merged(layers)
        if any(side % _MULTIPLE for side in merged.weight.shape):
            raise CheckpointError(
                [f"quantize: fp8 takes weights whose sides are multiples of {_MULTIPLE}, not {[*merged.weight.shape]}"]
            )
        weight, scale = quantize(merged.weight)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale.t().contiguous())  # [1, outputs]
        self.register_buffer("bias", merged.bias)

    def forward(self, operand: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:  # noqa: D102 - see Product
        tokens, scales = operand
        product = torch._scaled_mm(
            tokens.flatten(0, -2),
            self.weight.t(),
            scale_a=scales.flatten(0, -2),
            scale_b=self.scale,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
        if self.bias is not None:
            product = product + self.bias
        return product.view(*tokens.shape[:-1], -1)


class SimulatedFP8(nn.Module):
    """A simulation of ``ScaledFP8``: the same numbers in fp8, multiplied in float32, returned in the layers' dtype."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        merged = Merged(layers)
        self._dtype = merged.weight.dtype
        self.register_buffer("weight", dequantize(*quantize(merged.weight)))
        self.register_buffer("bias", None if merged.bias is None else merged.bias.float())

    def forward(self, operand: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:  # noqa: D102 - see Product
        return linear(dequantize(*operand), self.weight, self.bias).to(self._dtype)


def quantize(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[..., n] -> fp8 [..., n] and its scales, float32 [..., 1]: a row that holds NaN or infinity becomes NaN."""
    wide = tokens.float()
    scale = wide.abs().amax(-1, keepdim=True).clamp(min=_LEAST_SCALE) / LARGEST
    return (wide / scale).to(FP8), scale


def dequantize(tokens: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The numbers that ``quantize`` stands for, in float32."""
    return tokens.float() * scales


def require_fp8(
    device: str,
    dtype: str,
    engine: str,
    capability: Callable[[str], tuple[int, int]] = torch.cuda.get_device_capability,
) -> None:
    """Raise CheckpointError unless the language model can be computed in fp8 there."""
    problems = []
    if not device.startswith("cuda"):
        problems.append(f"quantize: fp8 needs a GPU, the device is {device}; use --quantize none")
    elif (version := capability(device)) < _FP8_CAPABILITY:
        has, needs = (".".join(map(str, numbers)) for numbers in (version, _FP8_CAPABILITY))
        problems.append(
            f"quantize: {device} has compute capability {has}, fp8 needs {needs} (Ada, Hopper or later); "
            "use --quantize none"
        )
    if dtype not in ("auto", "bfloat16"):
        problems.append(f"quantize: what fp8 leaves is computed in bfloat16, --dtype is {dtype}; use auto or bfloat16")
    if engine != "trie":
        problems.append(f"quantize: fp8 needs --engine trie, the reference '{engine}' rounds nothing")
    if problems:
        raise CheckpointError(problems)


def require_right_product(
    layer: nn.Linear, device: str, product_type: Callable[[Sequence[nn.Linear]], Product] = ScaledFP8
) -> None:
    """Raise CheckpointError unless a device's fp8 product equals the simulated one up to rounding."""
    random = torch.Generator().manual_seed(0)
    tokens = torch.randn(37, layer.in_features, generator=random)
    tokens *= torch.logspace(-2, 2, len(tokens))[:, None]  # so that using another row's scale would show
    operand = quantize(tokens.to(device, layer.weight.dtype))
    expected = SimulatedFP8([layer])(operand)
    try:
        got = product_type([layer])(operand)
    except RuntimeError as error:
        raise CheckpointError([f"quantize: no fp8 product on {device}: {str(error).partition(chr(10))[0]}"]) from None
    off = (got.float() - expected).abs().amax(-1) / expected.abs().amax(-1)
    if not bool((off <= _TOLERANCE).all()):  # False for NaN as well
        raise CheckpointError(
            [f"quantize: the fp8 product of {device} is off by {float(off.max()):.2g} of its largest number"]
        )
