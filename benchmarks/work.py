"""Counted work: what scoring a group costs in tokens, vision encodings and FLOPs, one by one and as a trie.

``python -m benchmarks.work`` prints the table for the 8B shape, ``--shape qwen2.5-vl-7b``, ``mimo-vl-7b`` and
``qwen2-vl-7b`` those of the published EditReward and HPSv3, and what the weights take. Nothing is timed and no weight
exists: ``jrm_service.bench.flops`` counts what the engine does, and in the same way what transformers' language model
does with one sequence.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from jrm_service.bench.flops import Work, WorkCounter, counted
from jrm_service.bench.tables import table
from jrm_service.model.weights import TensorHeader, empty_model, expected_tensors, weight_bytes
from jrm_service.scoring.types import Candidate, Image

from .published_shapes import PUBLISHED
from .shapes import SHAPES, Shape, group


def one_by_one(shape: Shape, candidates: Sequence[Candidate]) -> Work:
    """Each sequence alone: every token of every sequence, and its images again in every pass."""
    sequences = [sequence for candidate in candidates for sequence in candidate.sequences]
    lengths = Counter(sequence.tokens for sequence in sequences)
    encodings = sum(isinstance(segment, Image) for sequence in sequences for segment in sequence.segments)
    encoded = as_trie(shape, candidates[:1])  # images do not see each other, so n of them cost n times one
    return Work(
        tokens=sum(length * count for length, count in lengths.items()),
        encodings=encodings,
        language_flops=sum(_language_flops(shape, length) * count for length, count in lengths.items()),
        vision_flops=encodings * encoded.vision_flops // encoded.encodings,
    )


def as_trie(shape: Shape, candidates: Sequence[Candidate]) -> Work:
    """All candidates in one packed row, as the engine runs them."""
    return WorkCounter(shape.architecture, shape.spec).packed(candidates)


@torch.inference_mode()
def _language_flops(shape: Shape, tokens: int) -> int:
    """FLOPs of transformers' own forward pass over one sequence."""
    language = empty_model(shape.architecture).eval().language_model
    language.config._attn_implementation = "sdpa"
    inputs = torch.empty(1, tokens, language.config.hidden_size, device="meta")
    position_ids = torch.empty(3, 1, tokens, dtype=torch.int64, device="meta")
    return counted(lambda: language(inputs_embeds=inputs, position_ids=position_ids, use_cache=False))[1]


def by_layout(shape: Shape, size: int = 12) -> dict[str, tuple[Work, Work]]:
    """What one group of ``size`` costs in every layout: (one by one, as a trie)."""
    groups = {layout: group(shape, layout, size) for layout in shape.layouts}
    return {
        layout: (one_by_one(shape, candidates), as_trie(shape, candidates)) for layout, candidates in groups.items()
    }


def report(costs: Mapping[str, tuple[Work, Work]], size: int = 12) -> str:
    """The table of the documentation: what ``by_layout`` gave, with ratios."""
    rows = []
    for layout, (alone, shared) in costs.items():
        for what, one, other, unit in (
            ("language-model tokens", alone.tokens, shared.tokens, 1),
            ("vision encodings", alone.encodings, shared.encodings, 1),
            ("TFLOPs, language model", alone.language_flops, shared.language_flops, 10**12),
            ("TFLOPs, vision tower", alone.vision_flops, shared.vision_flops, 10**12),
            ("TFLOPs, both", alone.flops, shared.flops, 10**12),
        ):
            numbers = [f"{n:,}" if unit == 1 else f"{n / unit:,.1f}" for n in (one, other)]
            rows.append([layout, what, *numbers, f"{other / one:.3f}"])
    return table(["layout", f"a group of {size} costs", "one by one", "as a trie", "ratio"], rows)


def memory(shape: Shape) -> str:
    """What the backbone's weights take on a device."""
    tensors = expected_tensors(shape.architecture)
    taken = weight_bytes({name: TensorHeader(Path(), sizes, "BF16") for name, sizes in tensors.items()}, {})
    return "weights: " + ", ".join(f"{taken[name] / 2**30:.1f} GiB in {name}" for name in ("bfloat16", "fp8"))


if __name__ == "__main__":
    every = SHAPES | PUBLISHED
    arguments = argparse.ArgumentParser(prog="python -m benchmarks.work")
    arguments.add_argument("--shape", choices=every, default="8b")
    chosen = every[arguments.parse_args().shape]
    print(report(by_layout(chosen)))
    print(memory(chosen))
