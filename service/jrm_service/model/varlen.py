"""Variable-length attention: packed sequences in one kernel call, on devices that have such a kernel.

A kernel is used only after it has agreed with plain attention on the device itself: versions of torch differ in its
arguments and in how a causal mask is aligned with fewer queries than keys, and a misaligned mask is a wrong reward.
"""

from __future__ import annotations

import inspect
import itertools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import torch
from torch.nn.functional import scaled_dot_product_attention

logger = logging.getLogger(__name__)

_DTYPES = (torch.bfloat16, torch.float16)  # what the kernels of varlen_attn take
# Queries and keys of the trial's sequences: fewer queries than keys, as many, one, and more than a kernel's tile.
_TRIAL = ((3, 7), (5, 5), (1, 1), (1, 40), (17, 90), (130, 300))
_TOLERANCE = 0.05  # of outputs around 1: several steps of bfloat16. A mask that is off by one key is off by more


@dataclass(frozen=True, slots=True)
class Lengths:
    """The lengths of n packed sequences, and where each ends.

    ``cu_seqlens_q`` and ``cu_seqlens_k`` are cumulative numbers of queries and keys, int32 [n + 1] each, beginning with
    0. ``sequences`` are the (queries, keys) of each, and ``longest`` the largest of either, kept on the host so that
    nothing has to wait for the device.
    """

    cu_seqlens_q: torch.Tensor
    cu_seqlens_k: torch.Tensor
    sequences: tuple[tuple[int, int], ...]
    longest: tuple[int, int]

    @classmethod
    def of(cls, sequences: Sequence[tuple[int, int]]) -> Lengths:
        """Accumulate the (queries, keys) of each sequence, on the host."""
        ends = torch.tensor([(0, 0), *sequences]).cumsum(0, dtype=torch.int32)
        longest = (max(queries for queries, _ in sequences), max(keys for _, keys in sequences))
        return cls(ends[:, 0].contiguous(), ends[:, 1].contiguous(), tuple(sequences), longest)

    def to(self, device: str | torch.device) -> Lengths:
        """The same on a device."""
        q, k = (ends.to(device, non_blocking=True) for ends in (self.cu_seqlens_q, self.cu_seqlens_k))
        return replace(self, cu_seqlens_q=q, cu_seqlens_k=k)

    def pin(self) -> Lengths:
        """The same in pinned memory, from which a GPU copies without the host waiting."""
        return replace(self, cu_seqlens_q=self.cu_seqlens_q.pin_memory(), cu_seqlens_k=self.cu_seqlens_k.pin_memory())


class Kernel(Protocol):
    """Attention of every packed sequence to itself."""

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        lengths: Lengths,
        *,
        causal: bool,
        scale: float,
    ) -> torch.Tensor:
        """Query [Q, heads, d], key and value [K, kv heads, d] -> [Q, heads, d].

        If ``causal``, the last q keys of a sequence are its queries' own, and a query sees every key up to itself.
        """
        ...


@dataclass(frozen=True, slots=True)
class Shape:
    """The shape of a model's attention, which a kernel has to support."""

    heads: int
    kv_heads: int
    head_dim: int
    causal: bool


def one_by_one(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: Lengths, *, causal: bool, scale: float
) -> torch.Tensor:
    """Attention that works on every device, with a call for each sequence; a ``Kernel``."""
    queries, keys = ([sequence[n] for sequence in lengths.sequences] for n in range(2))
    attended = []
    parts = (torch.split(query, queries), torch.split(key, keys), torch.split(value, keys))
    for q, k, v in zip(*parts, strict=True):
        mask = causal_mask(len(q), len(k)).to(q.device) if causal else None
        q, k, v = (tensor.transpose(0, 1)[None] for tensor in (q, k, v))
        attended.append(masked_attention(q, k, v, mask, scale)[0].transpose(0, 1))
    return torch.cat(attended)


def masked_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """torch's attention: query [n, heads, q, d], key and value [n, kv heads, k, d] -> [n, heads, q, d].

    On a GPU the key and value heads are repeated, which takes some memory: torch has no kernel there for a mask with
    grouped heads, and would write out every weight [n, heads, q, k], which takes far more.
    """
    grouped = query.shape[1] != key.shape[1]
    if grouped and query.is_cuda:
        key, value = (repeated_heads(tensor, query.shape[1]) for tensor in (key, value))
        grouped = False
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=grouped)


def repeated_heads(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """[n, kv heads, …] -> [n, heads, …]: each head once for every query head that sees it."""
    return tensor.repeat_interleave(heads // tensor.shape[1], dim=1)


def causal_mask(queries: int, keys: int) -> torch.Tensor:
    """bool [q, k]: the last q keys are the queries' own, and a query sees everything up to itself."""
    return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)


def find_kernel(device: str, dtype: torch.dtype, shapes: Sequence[Shape]) -> Kernel | None:
    """torch's kernel, if it supports all ``shapes`` on a device; else None.

    Without a kernel a forward pass takes longer, and the calls of a GPU take copies of the key and value heads.
    """
    if not device.startswith("cuda") or dtype not in _DTYPES:
        return None
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return trusted_kernel(varlen_attn, device, dtype, shapes)


def trusted_kernel(
    varlen_attn: Callable[..., Any], device: str, dtype: torch.dtype, shapes: Sequence[Shape]
) -> Kernel | None:
    """The first way to call this torch's ``varlen_attn`` that supports all ``shapes`` on a device."""
    names = inspect.signature(varlen_attn).parameters
    # Split keys would be summed in an order that depends on the rest of the batch; older versions have no such option.
    options: list[dict[str, Any]] = [{"num_splits": 1}] * ("num_splits" in names) + [{}]
    # Grouped heads first, for which torch 2.11 has no keyword. Every kernel takes copies of the heads.
    for repeated, option in itertools.product((False, True), options):
        kernel = _calling(varlen_attn, option, repeated=repeated, gqa="enable_gqa" in names)
        if all(agrees(kernel, device, dtype, shape) for shape in shapes):
            how = [*(f"{name}={value}" for name, value in option.items()), *(["repeated heads"] * repeated)]
            logger.info("attention on %s: varlen_attn(%s)", device, ", ".join(how))
            return kernel
    logger.warning("attention on %s: one call for each shape, varlen_attn cannot be used here", device)
    return None


def agrees(kernel: Kernel, device: str, dtype: torch.dtype, shape: Shape) -> bool:
    """Whether a kernel agrees with plain attention in float32. One that raises does not."""
    random = torch.Generator().manual_seed(0)
    lengths = Lengths.of(_TRIAL)
    query, key, value = (
        torch.randn(int(ends[-1]), heads, shape.head_dim, generator=random).to(device, dtype)
        for ends, heads in (
            (lengths.cu_seqlens_q, shape.heads),
            (lengths.cu_seqlens_k, shape.kv_heads),
            (lengths.cu_seqlens_k, shape.kv_heads),
        )
    )
    scale = 1 / math.sqrt(shape.head_dim)
    expected = one_by_one(query.float(), key.float(), value.float(), lengths, causal=shape.causal, scale=scale)
    try:
        got = kernel(query, key, value, lengths.to(device), causal=shape.causal, scale=scale)
    except Exception as error:  # a version of torch may raise anything for an unknown argument or device
        logger.info("attention on %s: %s: %s", device, type(error).__name__, str(error).partition("\n")[0])
        return False
    return bool((got.float() - expected).abs().max() <= _TOLERANCE)  # False for NaN as well


def _calling(varlen_attn: Callable[..., Any], options: Mapping[str, Any], *, repeated: bool, gqa: bool) -> Kernel:
    """``varlen_attn`` as a ``Kernel``. ``gqa``: whether it has a keyword for grouped heads."""

    def kernel(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: Lengths, *, causal: bool, scale: float
    ) -> torch.Tensor:
        if repeated:
            key, value = (repeated_heads(tensor, query.shape[1]) for tensor in (key, value))
        attended: Any = varlen_attn(
            query,
            key,
            value,
            lengths.cu_seqlens_q,
            lengths.cu_seqlens_k,
            *lengths.longest,
            scale=scale,
            window_size=(-1, 0) if causal else (-1, -1),
            **({"enable_gqa": query.shape[1] != key.shape[1]} if gqa else {}),
            **options,
        )
        return cast("torch.Tensor", attended)  # a pair only if more is requested

    return kernel
