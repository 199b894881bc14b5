"""Draw a few groups of the synthetic world on one sheet, with labels, reasons and boxes.

``python examples/synthetic_world.py docs/synthetic-world.png`` draws the picture of ``docs/synthetic-world.md``.
"""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from jrm_training.data import Edit, Group
from jrm_training.world import World

WORLD = World(100, seed=1, split="test", edits=4, shapes=(2, 4))
INDICES = (12, 24, 1, 20, 3)  # recolour, add, remove, replace, move
CELL, GAP, TEXT = 152, 12, 44  # pixels
INK, PAPER, BOX = (40, 40, 40), (255, 255, 255), (230, 0, 200)


def sheet(groups: list[Group]) -> Image.Image:
    """A row for each group: the source over its instruction, then the edits over what is known about them."""
    columns = 1 + max(len(group.edits) for group in groups)
    page = Image.new("RGB", (GAP + columns * (CELL + GAP), GAP + len(groups) * (CELL + TEXT + GAP)), PAPER)
    for row, group in enumerate(groups):
        y = GAP + row * (CELL + TEXT + GAP)
        _cell(page, (GAP, y), group.source, textwrap.wrap(group.instruction, 26), [])
        for column, edit in enumerate(group.edits, 1):
            _cell(page, (GAP + column * (CELL + GAP), y), edit.image, _lines(edit), _boxes(edit))
    return page


def _lines(edit: Edit) -> list[str]:
    """The labels with the reasons that the critiques begin with."""
    lines = []
    for dimension, label in edit.labels.items():
        reasoning = json.loads(edit.critiques[dimension])["reasoning"]
        reason = reasoning.partition(": ")[2].partition(".")[0]
        lines.append(f"{''.join(word[0] for word in dimension.split('_')).upper()} {label:g}: {reason}")
    return lines


def _boxes(edit: Edit) -> list[list[int]]:
    regions = json.loads(edit.critiques["instruction_following"])["edit_region"]
    return [region["bbox_2d"] for region in regions]


def _cell(
    page: Image.Image, corner: tuple[int, int], image: Image.Image, lines: list[str], boxes: list[list[int]]
) -> None:
    left, top = corner
    scale = CELL / max(image.size)
    width, height = (round(side * scale) for side in image.size)
    page.paste(image.resize((width, height), Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST), corner)
    pen = ImageDraw.Draw(page)
    pen.rectangle((left - 1, top - 1, left + width, top + height), outline=(190, 190, 190))
    for x1, y1, x2, y2 in boxes:
        box = (left + x1 * width / 1000, top + y1 * height / 1000, left + x2 * width / 1000, top + y2 * height / 1000)
        pen.rectangle(box, outline=BOX)
    for number, line in enumerate(lines):
        pen.text((left, top + CELL + 5 + 15 * number), line, INK, ImageFont.load_default(11))


def main(file: Path) -> None:
    """Write the sheet as a PNG file ."""
    sheet([WORLD[index] for index in INDICES]).save(file, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "synthetic-world.png"))
