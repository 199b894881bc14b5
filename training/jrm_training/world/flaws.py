"""Visual flaws of graded strength, as generated images have them whatever they show.

Sizes are in 64ths of the image's shorter side and levels in 8-bit steps, so that a flaw looks as strong at any size.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np
from PIL import Image, ImageFilter

FLAWS = ("noise", "blur", "seams", "blocks", "ghosting")
_ON_PLAIN = ("noise", "seams")
# Strength by visual quality label: 3 slight, 2 clear, 1 severe. The bands leave gaps, so that labels are clear.
BANDS: dict[str, dict[int, tuple[float, float]]] = {
    "noise": {3: (9, 14), 2: (24, 34), 1: (55, 80)},  # standard deviation, levels
    "blur": {3: (0.8, 1.0), 2: (1.6, 2.1), 1: (3, 4)},  # radius, 64ths
    "seams": {3: (14, 20), 2: (36, 50), 1: (80, 120)},  # step in brightness, levels
    "blocks": {3: (2, 2.5), 2: (4, 5), 1: (7, 8.5)},  # side, 64ths
    "ghosting": {3: (0.14, 0.19), 2: (0.28, 0.34), 1: (0.43, 0.48)},  # opacity of the displaced copy: the original wins
}


@dataclass(frozen=True, slots=True)
class Flaw:
    """A kind of flaw with its strength, in the kind's own unit, and the seed of its pattern."""

    kind: str
    strength: float
    seed: int


def sample(label: int, random: Random, *, empty: bool = False) -> Flaw | None:
    """A flaw that makes an image of this visual quality, 1 to 4; none at all for 4.

    ``empty``: an image of nothing but background, where only some flaws can be seen.
    """
    if label == 4:
        return None
    kind = random.choice(_ON_PLAIN if empty else FLAWS)
    return Flaw(kind, random.uniform(*BANDS[kind][label]), random.getrandbits(32))


def apply(image: Image.Image, flaw: Flaw) -> Image.Image:
    """The image with the flaw, same size."""
    random = Random(flaw.seed)  # noqa: S311 - not a secret
    unit = min(image.size) / 64
    match flaw.kind:
        case "noise":
            return _noise(image, flaw, unit, random)
        case "blur":
            return image.filter(ImageFilter.GaussianBlur(flaw.strength * unit))
        case "seams":
            return _seams(image, flaw, random)
        case "blocks":
            side = max(1.0, flaw.strength * unit)
            small = image.resize([max(1, round(length / side)) for length in image.size], Image.Resampling.BOX)
            return small.resize(image.size, Image.Resampling.NEAREST)
        case "ghosting":
            reach = random.uniform(4, 8) * unit
            dx, dy = random.choice(((1, 0), (0, 1), (0.7, 0.7), (-0.7, 0.7)))
            copy = Image.new("RGB", image.size, image.getpixel((0, 0)))
            copy.paste(image, (round(dx * reach), round(dy * reach)))
            return Image.blend(image, copy, flaw.strength)
    raise ValueError(f"flaw is {flaw.kind!r}, must be one of {', '.join(FLAWS)}")


def _noise(image: Image.Image, flaw: Flaw, unit: float, random: Random) -> Image.Image:
    """Gaussian noise with a grain of one 64th; half the time finer, stronger and as visible after downscaling."""
    normal = np.random.default_rng(flaw.seed)
    grain = random.choice((1.0, 0.5)) if unit >= 2 else 1.0
    width, height = (max(1, round(length / unit / grain)) for length in image.size)
    field = normal.normal(0, flaw.strength / grain, (height, width, 3))
    pattern = Image.fromarray((np.clip(field, -127, 127) + 128).round().astype(np.uint8))
    grown = np.asarray(pattern.resize(image.size, Image.Resampling.NEAREST), np.int16) - 128
    return Image.fromarray(np.clip(np.asarray(image, np.int16) + grown, 0, 255).astype(np.uint8))


def _seams(image: Image.Image, flaw: Flaw, random: Random) -> Image.Image:
    """A rectangle that is lighter or darker than the rest of the image, like a badly pasted edit."""
    pixels = np.asarray(image, np.int16).copy()
    height, width = pixels.shape[:2]
    across, down = random.uniform(0.35, 0.6), random.uniform(0.35, 0.6)
    left, top = random.uniform(0.05, 0.95 - across), random.uniform(0.05, 0.95 - down)
    rows = slice(round(top * height), round((top + down) * height))
    columns = slice(round(left * width), round((left + across) * width))
    patch = pixels[rows, columns]
    # By the background, which a corner shows: towards the middle, so that the step is not clipped away.
    patch += round(flaw.strength) * (-1 if pixels[0, 0].mean() > 127 else 1)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
