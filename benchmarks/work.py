"""Counted work: what scoring a group costs in tokens, vision encodings and FLOPs, one by one and as a trie.

``python -m benchmarks.work`` prints the table for the 8B shape, ``--shape qwen2.5-vl-7b``, ``mimo-vl-7b`` and
``qwen2-vl-7b`` those of the published EditReward and HPSv3, and what the weights take. Nothing is timed and no weight
exists: torch's FLOP counter watches the layers run on the meta device. Language model and vision tower are counted
apart (the whole forward pass needs image sizes that a meta tensor does not have). Attention is counted as the counter
does, every query against every key that its kernel is given, for both ways alike. Reward heads are left out: less than
a part in 100,000.
"""

from __future__ import annotations

import argparse
import copy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from jrm_service.model.attention import ATTENTION, TrieAttention
from jrm_service.model.families import FAMILIES, Config, family_of
from jrm_service.model.rows import through_layers
from jrm_service.model.trie import Trie, build_trie
from jrm_service.model.vision import VisionTower
from jrm_service.model.weights import TensorHeader, empty_model, expected_tensors, weight_bytes
from jrm_service.scoring.types import Candidate, Image

from .published_shapes import PUBLISHED
from .shapes import SHAPES, Shape, group
from .tables import table


@dataclass(frozen=True, slots=True)
class Work:
    """What a batch costs: language-model tokens, images through the vision tower, FLOPs of either."""

    tokens: int
    encodings: int
    language_flops: int
    vision_flops: int

    @property
    def flops(self) -> int:
        """FLOPs of both; a multiplication and an addition are two."""
        return self.language_flops + self.vision_flops


def one_by_one(shape: Shape, candidates: Sequence[Candidate]) -> Work:
    """Each sequence alone: every token of every sequence, and both images again in every pass."""
    model = _meta_model(shape)
    sequences = [sequence for candidate in candidates for sequence in candidate.sequences]
    lengths = Counter(sequence.tokens for sequence in sequences)
    encodings = len(_images(candidates))
    return Work(
        tokens=sum(length * count for length, count in lengths.items()),
        encodings=encodings,
        language_flops=sum(_language_flops(model, length) * count for length, count in lengths.items()),
        vision_flops=encodings * _vision_flops(model, shape),
    )


def as_trie(shape: Shape, candidates: Sequence[Candidate]) -> Work:
    """All candidates in one packed row: every distinct path once, every distinct image once."""
    model = _meta_model(shape)
    trie = build_trie([sequence.segments for candidate in candidates for sequence in candidate.sequences])
    encodings = len({image.key for image in _images(candidates)})
    return Work(
        tokens=trie.tokens,
        encodings=encodings,
        language_flops=_language_flops(model, trie.tokens, trie),
        vision_flops=encodings * _vision_flops(model, shape),
    )


def _images(candidates: Sequence[Candidate]) -> list[Image]:
    """Every image that a sequence shows, as often as one does."""
    sequences = (sequence for candidate in candidates for sequence in candidate.sequences)
    return [segment for sequence in sequences for segment in sequence.segments if isinstance(segment, Image)]


def _config(shape: Shape) -> Config:
    return FAMILIES[shape.config["model_type"]].config_class.from_dict(copy.deepcopy(dict(shape.config)))


def _meta_model(shape: Shape) -> Any:
    return empty_model(_config(shape)).eval()


def _language_flops(model: Any, tokens: int, trie: Trie | None = None) -> int:
    """FLOPs of the language model over one row: a plain sequence, or the packed row of a trie."""
    language = model.language_model
    language.config._attn_implementation = "sdpa" if trie is None else ATTENTION
    inputs = torch.empty(tokens, language.config.hidden_size, device="meta")
    position_ids = torch.empty(3, 1, tokens, dtype=torch.int64, device="meta")
    if trie is None:
        return _count(lambda: language(inputs_embeds=inputs[None], position_ids=position_ids, use_cache=False))
    attention = TrieAttention.of(trie).to("meta")
    nowhere = torch.empty(0, dtype=torch.int64, device="meta")
    return _count(lambda: through_layers(language, inputs, position_ids, attention, nowhere, []))


def _vision_flops(model: Any, shape: Shape) -> int:
    """FLOPs of one square image; images do not see each other, so n of them cost n times that."""
    tower = VisionTower(model.visual, family_of(model.config), shape.spec)
    pixels = torch.zeros(shape.side, shape.side, 3, dtype=torch.uint8)
    return _count(lambda: tower.encode([pixels]))


def _count(forward: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        forward()
    return int(counter.get_total_flops())


def report(shape: Shape = SHAPES["8b"], size: int = 12) -> str:
    """The table of the documentation: one group of ``size``, every layout, with ratios."""
    rows = []
    for layout in shape.layouts:
        candidates = group(shape, layout, size)
        alone, shared = one_by_one(shape, candidates), as_trie(shape, candidates)
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
    tensors = expected_tensors(_config(shape))
    taken = weight_bytes({name: TensorHeader(Path(), sizes, "BF16") for name, sizes in tensors.items()}, {})
    return "weights: " + ", ".join(f"{taken[name] / 2**30:.1f} GiB in {name}" for name in ("bfloat16", "fp8"))


if __name__ == "__main__":
    every = SHAPES | PUBLISHED
    arguments = argparse.ArgumentParser(prog="python -m benchmarks.work")
    arguments.add_argument("--shape", choices=every, default="8b")
    chosen = every[arguments.parse_args().shape]
    print(report(chosen))
    print(memory(chosen))
