"""A drawn scene and edits of it, good and bad, for the bundled tiny checkpoint: shapes are all that it knows.

``python examples/draw_scene.py DIR`` writes them as PNG files. Pillow only, and nothing of the package: the checkpoint
was trained on another program's drawings.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

INSTRUCTION = "make the red square blue"
SIDE = 192

Box = tuple[int, int, int, int]
_SQUARE: Box = (24, 30, 78, 84)
_CIRCLE: Box = (112, 22, 164, 74)
_TRIANGLE = [(96, 116), (66, 168), (126, 168)]


def source() -> Image.Image:
    """A red square, a yellow circle and an orange triangle on white; RGB."""
    return _draw()


def edits() -> dict[str, Image.Image]:
    """Named edits for ``INSTRUCTION``, about best first; only the first does all that was asked and no harm."""
    right = _draw(square="blue")
    half = _draw()
    half.paste(right.crop((0, 0, 51, SIDE)))
    small = right.resize((SIDE // 9, SIDE // 9), Image.Resampling.BOX)
    return {
        "recoloured": right,
        "half of it": half,
        "a bit soft": right.filter(ImageFilter.GaussianBlur(2.5)),
        "green instead": _draw(square="green"),
        "circle as well": _draw(square="blue", circle="purple"),
        "triangle instead": _draw(triangle="blue"),
        "unchanged": source(),
        "blurred": right.filter(ImageFilter.GaussianBlur(10)),
        "blocks": small.resize((SIDE, SIDE), Image.Resampling.NEAREST),
    }


def _draw(square: str = "red", circle: str = "yellow", triangle: str = "orange") -> Image.Image:
    image = Image.new("RGB", (SIDE, SIDE), "white")
    pen = ImageDraw.Draw(image)
    pen.rectangle(_SQUARE, fill=square)
    pen.ellipse(_CIRCLE, fill=circle)
    pen.polygon(_TRIANGLE, fill=triangle)
    return image


def main(folder: Path) -> None:
    """Write the source and every edit to ``folder`` as NAME.png."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in {"source": source(), **edits()}.items():
        image.save(folder / f"{name.replace(' ', '-')}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "scene"))
