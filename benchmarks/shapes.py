"""Architectures and token counts without files: for the counted work, and the 8B checkpoint of a GPU run."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from jrm_service.images import preprocess
from jrm_service.images.preprocess import ImageSpec
from jrm_service.model.families import FAMILIES, Config
from jrm_service.scoring.types import Candidate, Image, Text, TokenSequence

Layout = Literal["paper", "prompt first", "one image"]

# Text tokens of the paper's layout, per pass: the turn's opening, what stands between the images, the prompt. With
# square images of 196 tokens these are segments of 201, 198 and 400.
OPENING, BETWEEN, PROMPT = 5, 2, 400
# In a prompt-first layout only this much of a prompt stands behind the images: the reward token and its cue.
ENDING = 8
PASSES = 2

_VISION = {"model_type": "qwen3_vl_vision", "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2}


@dataclass(frozen=True)
class Shape:
    """An architecture as ``config.json`` has it, and the side in pixels of the square images that it sees."""

    config: Mapping[str, Any]
    side: int
    layouts: tuple[Layout, ...] = ("paper", "prompt first")

    @property
    def architecture(self) -> Config:
        """The configuration as transformers has it."""
        return FAMILIES[self.config["model_type"]].config_class.from_dict(copy.deepcopy(dict(self.config)))

    @property
    def spec(self) -> ImageSpec:
        """Images of exactly ``side`` squared pixels."""
        patch_size = self.config["vision_config"]["patch_size"]
        return ImageSpec(min_pixels=self.side**2, max_pixels=self.side**2, patch_size=patch_size)


SHAPES = {
    # Qwen3-VL-8B-Instruct.
    "8b": Shape(
        {
            "model_type": "qwen3_vl",
            "tie_word_embeddings": False,
            "image_token_id": 151655,
            "video_token_id": 151656,
            "vision_start_token_id": 151652,
            "vision_end_token_id": 151653,
            "text_config": {
                "model_type": "qwen3_vl_text",
                "vocab_size": 151936,
                "hidden_size": 4096,
                "intermediate_size": 12288,
                "num_hidden_layers": 36,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "max_position_embeddings": 262144,
                "rope_theta": 5000000,
                "rope_scaling": {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [24, 20, 20]},
            },
            "vision_config": _VISION
            | {
                "depth": 27,
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "num_heads": 16,
                "out_hidden_size": 4096,
                "num_position_embeddings": 2304,
                "deepstack_visual_indexes": [8, 16, 24],
            },
        },
        side=448,
    ),
}


def group(shape: Shape, layout: Layout, size: int, *, seed: int = 0) -> list[Candidate]:
    """``size`` edits of one source: random pixels and random words in sequences of the paper's lengths.

    Two passes. ``paper``: opening, source, between, edited, prompt. ``prompt first``: the prompt moves to the front,
    all but its last ``ENDING`` tokens. ``one image``, as HPSv3 has it: one pass, opening, edited, prompt. The ids of a
    pass are the same for every candidate and seed.
    """
    source, *edits = (_image(shape, [seed, number]) for number in range(size + 1))
    passes = 1 if layout == "one image" else PASSES
    return [
        Candidate((source,), edited, "", tuple(_sequence(layout, number, source, edited) for number in range(passes)))
        for edited in edits
    ]


def _image(shape: Shape, seed: list[int]) -> Image:
    """Blocks of random colour under fine noise: noise alone would make all images look the same to a model."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 224, (4, 4, 3), np.uint8).repeat(shape.side // 4, 0).repeat(shape.side // 4, 1)
    pixels = blocks + random.integers(0, 32, blocks.shape, np.uint8)
    return Image(preprocess.digest(pixels), pixels, preprocess.tokens(pixels, shape.spec))


def _sequence(layout: Layout, number: int, source: Image, edited: Image) -> TokenSequence:
    opening, between, prompt = _words(OPENING, "opening"), _words(BETWEEN, "between"), _words(PROMPT, number)
    if layout == "one image":
        return TokenSequence((Text(opening), edited, Text(prompt)), tail=())
    if layout == "paper":
        return TokenSequence((Text(opening), source, Text(between), edited, Text(prompt)), tail=())
    front, ending = opening + prompt[:-ENDING], prompt[-ENDING:]
    return TokenSequence((Text(front), source, Text(between), edited, Text(ending)), tail=())


def _words(count: int, seed: str | int) -> tuple[int, ...]:
    """Ids below every control token."""
    return tuple(random.Random(seed).choices(range(256), k=count))
