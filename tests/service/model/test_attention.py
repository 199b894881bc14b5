"""Our attention inside transformers' layers."""

import torch
from torch import nn

from jrm_service.model.attention import TrieAttention, attend
from jrm_service.model.trie import build_trie
from jrm_service.model.varlen import one_by_one
from jrm_service.scoring.types import Text


def trie():
    """Three sequences over two levels of sharing, and one on its own."""
    start, middle = Text(tuple(range(5))), Text((7, 8))
    ends = [Text((9,) * n) for n in (3, 3, 4)]
    return build_trie([[start, middle, ends[0]], [start, middle, ends[2]], [start, ends[1]], [Text((1, 2, 3))]])


def test_one_call_for_all_nodes_gives_what_a_call_for_each_shape_gives():
    tokens = trie().tokens
    query, key, value = (torch.randn(1, heads, tokens, 8) for heads in (4, 2, 2))
    by_shape, by_kernel = (
        attend(nn.Module(), query, key, value, None, scaling=0.3, trie=TrieAttention.of(trie(), kernel))[0]
        for kernel in (None, one_by_one)
    )
    torch.testing.assert_close(by_kernel, by_shape)


def test_a_kernel_needs_no_masks():
    described = TrieAttention.of(trie(), one_by_one)
    assert described.masks == []
    assert described.lengths is not None
    assert int(described.lengths.cu_seqlens_k[-1]) == len(described.keys)
