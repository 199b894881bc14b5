"""Fused decoder layers, with fewer and larger kernels than transformers' own: the same arithmetic, rounded less often.

They fit by structure, not by class: any layer with RMSNorms, attention with q_proj, k_proj, v_proj and o_proj (with or
without biases, with or without norms of queries and keys) and an MLP with gate_proj, up_proj, down_proj and SiLU.
``kernels`` decides where they are used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import rms_norm, silu

from .attention import TrieAttention, attend
from .matrix_products import Merged, Operand, Product

Products = Callable[[Sequence[nn.Linear]], Product]


def as_it_is(value: Any) -> Any:
    """The identity: for functions that are not compiled, and tokens that are not rounded."""
    return value


class LayerFunctions:
    """The functions between the matrix products of a layer: one kernel each, if ``wrap`` compiles them.

    All but ``rotate`` return the operand of the next product. ``eps`` is that of every norm.
    """

    def __init__(
        self,
        eps: float = 0.0,
        wrap: Callable[[Any], Any] = as_it_is,
        operand: Callable[[torch.Tensor], Operand] = as_it_is,
    ) -> None:
        def norm(x: torch.Tensor, weight: torch.Tensor) -> Operand:
            return operand(rms_norm(x, x.shape[-1:], weight, eps))

        def add_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, Operand]:
            total = x + residual
            return total, norm(total, weight)

        def swiglu(gate_up: torch.Tensor) -> Operand:
            gate, up = gate_up.chunk(2, dim=-1)
            return operand(silu(gate) * up)

        def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
            """[T, heads, d], normed first if there is a weight; cos and sin [T, d]."""
            if weight is not None:
                x = rms_norm(x, x.shape[-1:], weight, eps)
            first, second = x.chunk(2, dim=-1)
            return x * cos[:, None] + torch.cat((-second, first), dim=-1) * sin[:, None]

        self.norm, self.add_norm, self.swiglu, self.rotate = map(wrap, (norm, add_norm, swiglu, rotate))
        self.operand = operand if operand is as_it_is else wrap(operand)


class Norm(nn.Module):
    """RMSNorm in torch's own kernel: it rounds once where transformers' rounds twice."""

    def __init__(self, plain: Any) -> None:
        super().__init__()
        self.weight = plain.weight
        self.eps = float(plain.variance_epsilon)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., H] -> [..., H]."""
        return rms_norm(x, x.shape[-1:], self.weight, self.eps)


class GatedMLP(nn.Module):
    """An MLP with gate, up and down projections and SiLU, of a decoder layer or of a vision tower."""

    def __init__(self, plain: Any, functions: LayerFunctions, products: Products = Merged) -> None:
        super().__init__()
        self._functions = functions
        self.gate_up = products([plain.gate_proj, plain.up_proj])
        self.down = products([plain.down_proj])

    def forward(self, operand: Operand) -> torch.Tensor:
        """An operand [..., H] -> [..., H]."""
        return self.down(self._functions.swiglu(self.gate_up(operand)))


class FusedLayer(nn.Module):
    """A decoder layer for a packed row, with the interface of transformers' own."""

    def __init__(self, plain: Any, functions: LayerFunctions, products: Products = Merged) -> None:
        super().__init__()
        attention = plain.self_attn
        projections = [attention.q_proj, attention.k_proj, attention.v_proj]
        self._functions = functions
        self._head_dim = attention.head_dim
        self._scaling = attention.scaling
        self._heads = [projection.out_features // attention.head_dim for projection in projections]
        self.attention_norm = plain.input_layernorm.weight
        self.mlp_norm = plain.post_attention_layernorm.weight
        self.query_norm = attention.q_norm.weight if hasattr(attention, "q_norm") else None
        self.key_norm = attention.k_norm.weight if hasattr(attention, "k_norm") else None
        self.qkv = products(projections)
        self.out = products([attention.o_proj])
        self.mlp = GatedMLP(plain.mlp, functions, products)

    def forward(
        self,
        hidden: torch.Tensor,
        *,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        trie: TrieAttention,
    ) -> torch.Tensor:
        """[1, T, H] -> [1, T, H]; cos and sin of the positions are [1, T, d]."""
        functions = self._functions
        qkv: torch.Tensor = self.qkv(functions.norm(hidden, self.attention_norm))
        query, key, value = qkv.view(qkv.shape[1], -1, self._head_dim).split_with_sizes(self._heads, dim=1)
        cos, sin = (table[0] for table in position_embeddings)
        query = functions.rotate(query, cos, sin, self.query_norm)
        key = functions.rotate(key, cos, sin, self.key_norm)
        query, key, value = (tensor.transpose(0, 1)[None] for tensor in (query, key, value))
        attended, _ = attend(self, query, key, value, None, scaling=self._scaling, trie=trie)
        out = self.out(functions.operand(attended.flatten(2)))
        hidden, operand = functions.add_norm(out, hidden, self.mlp_norm)
        added: torch.Tensor = self.mlp(operand)
        return hidden + added
