"""Manifests and tiny checkpoints for tests."""

import copy
from pathlib import Path
from typing import Any

from jrm_service.model.tiny import MANIFEST, write_tiny_checkpoint

IMAGES_FIRST = "Text instruction - {instruction}\nHow good is the edit? <|Reward|>\n"
TWO_DIMENSIONS = {"instruction_following": "head_0", "visual_quality": "head_1"}


def manifest(**changes: Any) -> dict[str, Any]:
    """The tiny manifest with some of its top-level keys replaced."""
    return copy.deepcopy(MANIFEST) | changes


def one_pass() -> dict[str, Any]:
    return manifest()


def two_passes() -> dict[str, Any]:
    """EditReward's layout: the same images, one prompt for each dimension."""
    parts = ["source", "edited", "prompt"]
    return manifest(
        passes=[
            {"parts": parts, "prompt": IMAGES_FIRST, "read": {"instruction_following": "head_0"}},
            {"parts": parts, "prompt": "Look at {instruction} now.<|Reward|>", "read": {"visual_quality": "head_1"}},
        ]
    )


def prompt_first() -> dict[str, Any]:
    """The fixed text before the images; what differs between candidates comes last."""
    one = {
        "parts": ["prompt", "source", "edited", "ending"],
        "prompt": "Judge how well the second image follows the edit.\n",
        "ending": "\nEdit: {instruction} <|Reward|>",
        "read": TWO_DIMENSIONS,
    }
    return manifest(passes=[one])


def without_source(source: dict[str, Any]) -> dict[str, Any]:
    """As for text-to-image: no pass shows a source."""
    passes = [one | {"parts": [part for part in one["parts"] if part != "source"]} for one in source["passes"]]
    return source | {"passes": passes}


def no_source() -> dict[str, Any]:
    """A text-to-image checkpoint: its one pass shows the image and the prompt."""
    one = {"parts": ["edited", "prompt"], "prompt": IMAGES_FIRST, "read": TWO_DIMENSIONS}
    return manifest(passes=[one], name="jrm-tiny-text-to-image")


def several_sources(most: int = 3) -> dict[str, Any]:
    """Up to so many source images, in two passes of which the second shows the edited image first."""
    return manifest(
        name="jrm-tiny-sources",
        image=MANIFEST["image"] | {"max_sources": most},
        passes=[
            {
                "parts": ["source", "edited", "prompt"],
                "prompt": IMAGES_FIRST,
                "read": {"instruction_following": "head_0"},
            },
            {
                "parts": ["edited", "prompt", "source", "ending"],
                "prompt": "Look at {instruction} now.",
                "ending": "And?<|Reward|>",
                "read": {"visual_quality": "head_1"},
            },
        ],
    )


def mean_only(source: dict[str, Any]) -> dict[str, Any]:
    return source | {"heads": {name: {"hidden": [32], "outputs": ["mean"]} for name in ("head_0", "head_1")}}


def lowest(source: dict[str, Any]) -> dict[str, Any]:
    return source | {"reward": {"combine": "min", "weights": {}}}


def weighted(source: dict[str, Any]) -> dict[str, Any]:
    return source | {"reward": {"combine": "mean", "weights": {"instruction_following": 3.0, "visual_quality": 0.5}}}


def write(path: Path, source: dict[str, Any], **options: Any) -> Path:
    return write_tiny_checkpoint(path, source, **options)
