"""How far JPEG on the wire moves a score: ``python -m benchmarks.jpeg_wire``.

Trainers' own clients send their images as JPEG, at the quality that pillow has by default, 75, or at 95; through the
SDK the same images travel without loss. The groups are those of the synthetic world that the bundled checkpoint never
saw; each is scored from its pixels and from both kinds of files, sources and edits alike, in float32.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from jrm_service.bench.tables import machine
from jrm_service.images.decode import decode
from jrm_service.model.checkpoint import open_checkpoint
from jrm_service.model.engine import TrieScorer
from jrm_service.model.source import BUNDLED
from jrm_service.scoring.preparing import CheckpointPreparer
from jrm_service.scoring.types import Candidate
from jrm_training.world import World

from .bf16 import GROUP, Comparison, report, scored

QUALITIES = (95, 75)

Recode = Callable[[Image.Image], Image.Image]


def as_jpeg(quality: int) -> Recode:
    """What the server decodes of an image that was sent as JPEG."""

    def recode(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return decode(file.getvalue())

    return recode


def groups_of_world(preparer: CheckpointPreparer, groups: int, recode: Recode) -> list[list[Candidate]]:
    """The same groups every time, with every image recoded."""
    prepared = []
    for group in World(groups, split="test", edits=GROUP):
        sources = [preparer.image(recode(source)) for source in group.sources]
        edits = [preparer.image(recode(edit.image)) for edit in group.edits]
        prepared.append([preparer.candidate(sources, edited, group.instruction) for edited in edits])
    return prepared


def main() -> None:
    """Print a table for each quality."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--checkpoint", type=Path, default=BUNDLED, help="scored on the synthetic world")
    parser.add_argument("--groups", type=int, default=40, help=f"of {GROUP} edits each")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    checkpoint = open_checkpoint(options.checkpoint)
    preparer = CheckpointPreparer(checkpoint)
    scorer = TrieScorer(checkpoint, options.device, torch.float32)
    print(f"{machine()}; {checkpoint.manifest.name}, {options.groups} groups of {GROUP}\n", flush=True)
    lossless = groups_of_world(preparer, options.groups, lambda image: image)
    sizes = [len(group) for group in lossless]
    theirs = scored(scorer, lossless)
    comparisons = [
        Comparison(
            f"JPEG {quality}, without loss",
            scored(scorer, groups_of_world(preparer, options.groups, as_jpeg(quality))),
            theirs,
        )
        for quality in QUALITIES
    ]
    print(report(comparisons, sizes))


if __name__ == "__main__":
    main()
