"""Edits of ``photo.jpg``, good and bad, as an image-editing model might have made them: one group for the reward model.

``python examples/make_edits.py DIR`` writes them as PNG files. Pillow only, and the same pixels on every run.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFilter

PHOTO = Path(__file__).with_name("photo.jpg")
INSTRUCTION = "make the red cup and the saucer blue"

# Where cup and saucer are in the photo, and the coffee in the cup, as fractions of width and height.
_SAUCER = (0.128, 0.155, 0.803, 0.975)
_COFFEE = (0.335, 0.22, 0.62, 0.49)
# Hues on pillow's circle of 256.
_BLUE, _GREEN = 156, 85


def edits(photo: Image.Image) -> dict[str, Image.Image]:
    """Return named edits of ``photo`` (RGB) for ``INSTRUCTION``, best first; each is a new RGB image.

    All have the photo's size but ``cropped``. Only ``recoloured`` does what was asked for without doing harm.
    """
    red = _red_things(photo)
    blue = _with_hue(photo, _BLUE, red)
    return {
        "recoloured": blue,
        "soft": blue.filter(ImageFilter.GaussianBlur(photo.width / 170)),
        "noisy": _noisy(blue, amount=0.3),
        "everything": _with_hue(photo, _BLUE, Image.new("L", photo.size, 255)),
        "green": _with_hue(photo, _GREEN, red),
        "unchanged": photo.copy(),
        "mirrored": photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        "cropped": photo.crop((0, 0, photo.width // 2, photo.height // 2)),
        "blocks": _blocks(photo, side=photo.width // 16),
    }


def _red_things(photo: Image.Image) -> Image.Image:
    """A soft mask, L, of what is red within the saucer's outline."""
    hue, saturation, _ = photo.convert("HSV").split()
    reddish = hue.point([255 if level < 15 or level > 240 else 0 for level in range(256)])
    vivid = saturation.point([255 if level > 110 else 0 for level in range(256)])
    place = Image.new("L", photo.size, 0)
    draw = ImageDraw.Draw(place)
    draw.ellipse(_box(_SAUCER, photo), fill=255)
    draw.ellipse(_box(_COFFEE, photo), fill=0)
    mask = ImageChops.darker(ImageChops.darker(reddish, vivid), place)
    return mask.filter(ImageFilter.MedianFilter(5)).filter(ImageFilter.GaussianBlur(1))


def _box(fractions: tuple[float, float, float, float], photo: Image.Image) -> tuple[float, ...]:
    return tuple(fraction * side for fraction, side in zip(fractions, photo.size * 2, strict=True))


def _with_hue(photo: Image.Image, hue: int, mask: Image.Image) -> Image.Image:
    """The photo with one hue under the mask; light, shadow and reflections stay."""
    _, saturation, value = photo.convert("HSV").split()
    flat = Image.new("L", photo.size, hue)
    return Image.composite(Image.merge("HSV", (flat, saturation, value)).convert("RGB"), photo, mask)


def _noisy(photo: Image.Image, amount: float) -> Image.Image:
    noise = Image.frombytes("RGB", photo.size, random.Random(0).randbytes(photo.width * photo.height * 3))
    return Image.blend(photo, noise, amount)


def _blocks(photo: Image.Image, side: int) -> Image.Image:
    small = photo.resize((photo.width // side, photo.height // side), Image.Resampling.BOX)
    return small.resize(photo.size, Image.Resampling.NEAREST)


def main(folder: Path) -> None:
    """Write every edit to ``folder`` as NAME.png."""
    folder.mkdir(parents=True, exist_ok=True)
    with Image.open(PHOTO) as file:
        photo = file.convert("RGB")
    for name, image in edits(photo).items():
        image.save(folder / f"{name}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "edits"))
