"""Groups, recipes and states for tests of training: as small as they can be and still tell right from wrong."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from jrm_training.config import Recipe
from jrm_training.data import Edit, Group
from support.pictures import photo

CRITIQUES = (
    '{"reasoning": "<|global|> very good: done as asked."}',
    '{"reasoning": "<|bbox_0|> the square is red <|global|> poor."}',
    "plain words, ünicode and <|im_end|> as text",
)


def edit(seed: int, following: float = 1, quality: float = 1, **critiques: str) -> Edit:
    """``critiques`` by dimension."""
    labels = {"instruction_following": following, "visual_quality": quality}
    return Edit(photo(48, 40, seed=seed), labels, critiques)


def group(seed: int, edits: int = 2, instruction: str = "make the square red") -> Group:
    """Labels differ between the edits, in another order for each dimension; both dimensions have critiques."""
    made = [
        edit(
            100 * seed + n, 1 + n % 4, 4 - n % 3, instruction_following=CRITIQUES[n % 3], visual_quality=f"quality {n}"
        )
        for n in range(1, edits + 1)
    ]
    return Group(photo(48, 40, seed=100 * seed), instruction, tuple(made))


def easy_groups() -> list[Group]:
    """Two groups that a random model learns by heart in a dozen steps: what is better depends on the instruction."""

    def plain(colour: str, following: float, quality: float, text: str) -> Edit:
        labels = {"instruction_following": following, "visual_quality": quality}
        return Edit(Image.new("RGB", (32, 32), colour), labels, dict.fromkeys(labels, text))

    good, bad = (2, 1, "good"), (1, 2, "bad")
    return [
        Group(Image.new("RGB", (32, 32), "white"), "make it red", (plain("red", *good), plain("blue", *bad))),
        Group(Image.new("RGB", (32, 32), "gray"), "make it blue", (plain("blue", *good), plain("red", *bad))),
    ]


def groups(count: int, edits: int = 2) -> list[Group]:
    return [group(n, edits, f"edit number {n}") for n in range(count)]


def recipe(**changes: Any) -> Recipe:
    """Two groups a step, in a row each; ``optimizer`` and ``data`` are merged key by key. Groups come from the test."""
    values: dict[str, Any] = {"name": "tried", "batch": 2, "micro_batch": 1, "saved_dtype": "float32"}
    values["data"] = {"jsonl": "not-read.jsonl", **changes.pop("data", {})}
    values["optimizer"] = {"lr": 1e-3, "warmup": 0.5, **changes.pop("optimizer", {})}
    return Recipe.model_validate(values | changes)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint folder."""
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors") | load_file(folder / "reward" / "heads.safetensors")
