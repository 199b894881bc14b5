"""What decoding costs beside pillow alone: ``python -m benchmarks.decoding``.

CPU milliseconds of one thread for images of each format and size, as the server decodes them and as
``Image.open(...).convert("RGB")`` does. The two take turns; each number is the best of its rounds.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from jrm_service.bench.tables import machine, table
from jrm_service.images.decode import decode

SIDES = (64, 256, 512, 1024, 2048)
FORMATS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "JPEG, quality 90": ("JPEG", {"quality": 90}),
    "JPEG, quality 95, 4:4:4": ("JPEG", {"quality": 95, "subsampling": 0}),
    "JPEG, quality 90, optimized": ("JPEG", {"quality": 90, "optimize": True}),
    "JPEG, quality 90, progressive": ("JPEG", {"quality": 90, "progressive": True}),
    "PNG": ("PNG", {}),
    "WebP, quality 90": ("WEBP", {"quality": 90}),
    "WebP, lossless": ("WEBP", {"lossless": True}),
    "PPM": ("PPM", {}),
}


def measure(file: bytes, rounds: int) -> tuple[float, float]:
    """CPU milliseconds of pillow alone and of the server's decoder."""
    ways: tuple[Callable[[], object], ...] = (
        lambda: Image.open(io.BytesIO(file)).convert("RGB"),
        lambda: decode(file),
    )
    best = [float("inf")] * len(ways)
    for _ in range(rounds):
        for number, way in enumerate(ways):
            started = time.thread_time()
            way()
            best[number] = min(best[number], time.thread_time() - started)
    return best[0] * 1e3, best[1] * 1e3


def photo(side: int) -> Image.Image:
    """Noise under a little blur, which compresses about as a photograph does."""
    noise = np.random.default_rng(side).integers(0, 256, (side, side, 3), np.uint8)
    return Image.fromarray(noise).filter(ImageFilter.GaussianBlur(1.5))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="for 512 x 512; more for smaller images")
    arguments = parser.parse_args()
    rows = []
    for name, (format_name, options) in FORMATS.items():
        for side in SIDES:
            file = io.BytesIO()
            photo(side).save(file, format_name, **options)
            # As many pixels for each size, and so about as long.
            pillow, ours = measure(file.getvalue(), max(3, arguments.rounds * 512**2 // side**2))
            rows.append([name, f"{side} x {side}", f"{pillow:.3f}", f"{ours:.3f}", f"{ours / pillow:.2f}"])
    print(machine())
    print(table(["format", "size", "pillow, ms", "decode, ms", "ratio"], rows))


if __name__ == "__main__":
    main()
