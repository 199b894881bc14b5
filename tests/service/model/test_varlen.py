"""Kernels over packed sequences: which ones are trusted."""

import logging
import math

import pytest
import torch

from jrm_service.model.varlen import (
    Lengths,
    Shape,
    agrees,
    causal_mask,
    find_kernel,
    masked_attention,
    one_by_one,
    repeated_heads,
    trusted_kernel,
)

GROUPED = Shape(heads=4, kv_heads=2, head_dim=16, causal=True)
WITHIN_IMAGES = Shape(heads=2, kv_heads=2, head_dim=24, causal=False)


def upper_left(query, key, value, lengths, *, causal, scale):
    """The other way to lay a causal mask over fewer queries than keys: the first query sees the first key alone."""
    scores = scale * torch.einsum("qhd,khd->hqk", *(t.repeat_interleave(4 // t.shape[1], 1) for t in (query, key)))
    visible = torch.zeros(scores.shape[1:], dtype=torch.bool)
    for (q, k), (q_end, k_end) in zip(lengths.sequences, _ends(lengths), strict=True):
        visible[q_end - q : q_end, k_end - k : k_end] = torch.ones(q, k, dtype=torch.bool).tril()
    weights = scores.masked_fill(~visible, -math.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, value.repeat_interleave(2, 1))


def _ends(lengths):
    return zip(lengths.cu_seqlens_q[1:].tolist(), lengths.cu_seqlens_k[1:].tolist(), strict=True)


def torch_2_13(
    query, key, value, queries, keys, longest_q, longest_k, *, scale, window_size, enable_gqa=False, num_splits=None
):
    if (query.shape[1] != key.shape[1]) is not enable_gqa:
        raise ValueError("set enable_gqa")
    return torch_2_11(query, key, value, queries, keys, longest_q, longest_k, scale=scale, window_size=window_size)


def torch_2_11(query, key, value, queries, keys, longest_q, longest_k, *, scale=None, window_size=(-1, -1)):
    sequences = list(zip(queries.diff().tolist(), keys.diff().tolist(), strict=True))
    lengths = Lengths.of(sequences)
    assert (longest_q, longest_k) == lengths.longest
    return one_by_one(query, key, value, lengths, causal=window_size == (-1, 0), scale=scale)


def ungrouped(query, key, value, queries, keys, longest_q, longest_k, *, scale=None, window_size=(-1, -1)):
    if query.shape[1] != key.shape[1]:
        raise RuntimeError("expected as many heads")
    return torch_2_11(query, key, value, queries, keys, longest_q, longest_k, scale=scale, window_size=window_size)


def no_scale(query, key, value, queries, keys, longest_q, longest_k, *, window_size=(-1, -1)):
    return torch_2_11(query, key, value, queries, keys, longest_q, longest_k, window_size=window_size)


HOW = {
    torch_2_13: "varlen_attn(num_splits=1)",
    torch_2_11: "varlen_attn()",
    ungrouped: "varlen_attn(repeated heads)",
    no_scale: "one call for each shape",
}


@pytest.mark.parametrize("varlen_attn", HOW)
def test_attention_is_one_call_however_this_torch_wants_to_be_called(varlen_attn, caplog):
    with caplog.at_level(logging.INFO):
        kernel = trusted_kernel(varlen_attn, "cpu", torch.float32, [GROUPED, WITHIN_IMAGES])
    assert HOW[varlen_attn] in caplog.text
    assert (kernel is None) is (varlen_attn is no_scale)
    if kernel is not None:
        assert agrees(kernel, "cpu", torch.float32, GROUPED)


def refusing(*_args, **_kwargs):
    raise TypeError("unexpected keyword argument 'num_splits'")


def not_a_number(query, *_args, **_kwargs):
    return torch.full_like(query, math.nan)


@pytest.mark.parametrize("shape", [GROUPED, WITHIN_IMAGES])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_attention_agrees_with_itself(shape, dtype):
    assert agrees(one_by_one, "cpu", dtype, shape)


@pytest.mark.parametrize("kernel", [upper_left, refusing, not_a_number])
def test_a_kernel_that_gives_something_else_is_not_trusted(kernel):
    assert not agrees(kernel, "cpu", torch.float32, GROUPED)


def test_without_causality_nothing_is_hidden():
    lengths = Lengths.of([(2, 5)])
    query, key, value = torch.randn(2, 1, 8), torch.randn(5, 1, 8), torch.randn(5, 1, 8)
    attended = one_by_one(query, key, value, lengths, causal=False, scale=0.5)
    expected = (0.5 * query[:, 0] @ key[:, 0].T).softmax(-1) @ value[:, 0]
    torch.testing.assert_close(attended[:, 0], expected)


def test_the_last_keys_are_the_queries_own():
    assert causal_mask(2, 4).tolist() == [[True, True, True, False], [True, True, True, True]]


def test_repeated_heads_see_what_grouped_heads_see():
    """What a GPU computes, which has no kernel for a mask with grouped heads, is what a CPU computes without copies."""
    random = torch.Generator().manual_seed(0)
    query = torch.randn(3, 6, 4, 16, generator=random)
    key, value = (torch.randn(3, 2, 9, 16, generator=random) for _ in range(2))
    mask = causal_mask(4, 9)
    grouped = masked_attention(query, key, value, mask, 0.25)
    repeated = masked_attention(query, repeated_heads(key, 6), repeated_heads(value, 6), mask, 0.25)
    torch.testing.assert_close(repeated, grouped)


def test_lengths_are_counted_up():
    lengths = Lengths.of([(3, 7), (1, 2)])
    assert lengths.cu_seqlens_q.tolist() == [0, 3, 4]
    assert lengths.cu_seqlens_k.tolist() == [0, 7, 9]
    assert lengths.cu_seqlens_q.dtype == lengths.cu_seqlens_k.dtype == torch.int32
    assert lengths.longest == (3, 7)


def test_a_cpu_has_no_kernel_and_float32_none_anywhere():
    assert find_kernel("cpu", torch.bfloat16, [GROUPED]) is None
    assert find_kernel("cuda:0", torch.float32, [GROUPED]) is None
