"""What is done to pictures before they are sent, and what it does to rewards: ``python -m benchmarks.preprocessing``.

Trainers save JPEG, resize with whatever library is at hand, and render at one size or another. Groups of the synthetic
world that the bundled checkpoint never saw are scored as they are drawn, without loss, and again after each treatment,
by the engine in float32. Treatments are of sources and edits alike, but those that say otherwise.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from jrm_service.bench.tables import machine, table
from jrm_service.images.decode import decode
from jrm_service.images.preprocess import ImageSpec, smart_resize
from jrm_service.model.checkpoint import open_checkpoint
from jrm_service.model.checkpoint_source import BUNDLED
from jrm_service.model.engine import TrieScorer
from jrm_service.scoring.preparing import CheckpointPreparer
from jrm_service.scoring.types import Candidate
from jrm_training.data import Group
from jrm_training.world import World

from .bf16 import GROUP, Array, order_kept, scored, spread

Treat = Callable[[Image.Image], Image.Image]
Resize = Callable[[Image.Image, tuple[int, int]], Image.Image]
"""An image and the (width, height) that it should have."""


@dataclass(frozen=True, slots=True)
class Treatment:
    """``treat`` is done to pictures drawn with a shorter side of ``side`` pixels; None: of the world's own sizes."""

    name: str
    treat: Treat
    side: int | None = None
    sources_too: bool = True


def as_file(kind: str, **options: object) -> Treat:
    """What the server decodes of an image that was sent as such a file."""

    def treat(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, kind, **options)
        return decode(file.getvalue())

    return treat


def by_pillow(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Bicubic with antialiasing, which is what the server does."""
    return image.resize(size, Image.Resampling.BICUBIC)


def by_torch(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Bicubic with antialiasing on bytes, which is what torchvision does to tensors."""
    return _image(F.interpolate(_pixels(image), size[::-1], mode="bicubic", antialias=True))


def by_interpolate(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """``torch.nn.functional.interpolate`` without antialiasing: bilinear, from the four nearest pixels alone."""
    return _image(F.interpolate(_pixels(image).float(), size[::-1], mode="bilinear").round().byte())


def by_opencv(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """``cv2.resize`` by default: bilinear, from the four nearest pixels alone."""
    return Image.fromarray(cv2.resize(np.array(image), size, interpolation=cv2.INTER_LINEAR))


def by_opencv_area(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """``cv2.INTER_AREA``: the mean of what a new pixel covers."""
    return Image.fromarray(cv2.resize(np.array(image), size, interpolation=cv2.INTER_AREA))


def _pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]


def _image(pixels: torch.Tensor) -> Image.Image:
    return Image.fromarray(pixels[0].permute(1, 2, 0).numpy())


def halved(resize: Resize) -> Treat:
    """Half as many pixels a side."""
    return lambda image: resize(image, (image.width // 2, image.height // 2))


def treatments(spec: ImageSpec, large: int) -> list[Treatment]:
    """Every treatment; those of the same ``side`` are compared with the untouched pictures of that side."""

    def models_size(resize: Resize) -> Treat:
        def treat(image: Image.Image) -> Image.Image:
            height, width = smart_resize(image.height, image.width, spec)
            return resize(image, (width, height))

        return treat

    files = [
        Treatment("JPEG 95", as_file("JPEG", quality=95)),
        Treatment("JPEG 75", as_file("JPEG", quality=75)),
        Treatment("JPEG 75, edits alone", as_file("JPEG", quality=75), sources_too=False),
        Treatment("WebP 80", as_file("WEBP", quality=80)),
    ]
    large_files = [replace(one, name=f"{one.name}, of {large} pixels", side=large) for one in files]
    libraries = {
        "pillow, bicubic": by_pillow,
        "torchvision, bicubic": by_torch,
        "OpenCV, INTER_AREA": by_opencv_area,
        "OpenCV, INTER_LINEAR": by_opencv,
        "torch's interpolate, bilinear": by_interpolate,
    }
    half = f"{large} to {large // 2} pixels by"
    whole = f"{large} pixels to the model's size by"
    return [
        *files,
        *large_files,
        *(Treatment(f"{half} {name}", halved(resize), large) for name, resize in libraries.items()),
        *(Treatment(f"{whole} {name}", models_size(resize), large) for name, resize in libraries.items()),
    ]


def prepared(preparer: CheckpointPreparer, groups: Sequence[Group], one: Treatment) -> list[list[Candidate]]:
    """The groups with their pictures treated."""
    made = []
    for group in groups:
        sources = [preparer.image(one.treat(source) if one.sources_too else source) for source in group.sources]
        edits = [preparer.image(one.treat(edit.image)) for edit in group.edits]
        made.append([preparer.candidate(sources, edited, group.instruction) for edited in edits])
    return made


def picks_kept(ours: Array, theirs: Array) -> float:
    """Share of the groups of GROUP whose best edit is the same."""
    both = (rewards.reshape(-1, GROUP).argmax(axis=1) for rewards in (ours, theirs))
    return float(np.equal(*both).mean())


def row(name: str, ours: Array, theirs: Array) -> list[str]:
    """What a treatment does to the rewards [candidates] of whole groups."""
    off = np.abs(ours - theirs)
    sizes = [GROUP] * (len(ours) // GROUP)
    figures = [f"{figure:.2g}" for figure in (np.median(off), np.quantile(off, 0.99), off.max())]
    return [
        name,
        *figures,
        f"{(ours - theirs).mean():+.2g}",
        f"{order_kept(ours, theirs, sizes):.1%}",
        f"{picks_kept(ours, theirs):.0%}",
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--checkpoint", type=Path, default=BUNDLED, help="scored on the synthetic world")
    parser.add_argument("--groups", type=int, default=40, help=f"of {GROUP} edits each")
    parser.add_argument("--large", type=int, default=1024, help="shorter side of large pictures, pixels")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    checkpoint = open_checkpoint(options.checkpoint)
    preparer = CheckpointPreparer(checkpoint)
    scorer = TrieScorer(checkpoint, options.device, torch.float32)
    print(f"{machine()}; {checkpoint.manifest.name}, {options.groups} groups of {GROUP}", flush=True)

    large, half = options.large, options.large // 2
    drawn = {side: list(World(options.groups, split="test", edits=GROUP, side=side)) for side in (None, large, half)}

    def rewards(one: Treatment) -> Array:
        return scored(scorer, prepared(preparer, drawn[one.side], one))["reward"]

    untouched = {side: rewards(Treatment("", lambda image: image, side)) for side in drawn}
    rows: list[Sequence[str]] = [row(f"drawn with {half} pixels, against {large}", untouched[half], untouched[large])]
    for one in treatments(checkpoint.image_spec, large):
        rows.append(row(one.name, rewards(one), untouched[one.side]))
        print(f"{one.name}: done", flush=True)
    spreads = [f"{spread(untouched[side], [GROUP] * options.groups):.2f}" for side in (None, large)]
    print(f"\nspread of rewards in a group: {spreads[0]}, of {large} pixels {spreads[1]}\n")
    headings = ["reward", "median change", "99%", "largest", "mean", "pairs in the same order", "same pick of 12"]
    print(table(headings, rows))


if __name__ == "__main__":
    main()
