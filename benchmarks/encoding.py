"""What it costs to put a step's images on the wire: ways to encode them without loss, against each other in one run.

``python -m benchmarks.encoding`` encodes 288 edits of 512x512 (Flow-GRPO's step in the paper), given as float32
[3, 512, 512] in [0, 1], and hashes the bytes, as the SDK does before it sends anything. One thread, or as many as
the SDK uses. Time on the wire is computed from the bytes; the SDK encodes a call first and then sends it, so the two
add up. Ways take turns, and ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median

import numpy as np
import numpy.typing as npt
from PIL import Image

from jrm_client.images import encode
from jrm_service.bench.rounds import Rates
from jrm_service.bench.tables import machine, table

from .pictures import Pictures

Floats = npt.NDArray[np.float32]
Encode = Callable[[Floats], bytes]

DISTINCT = 24  # images; the others repeat them, which changes nothing for an encoder
THREADS = min(32, (os.cpu_count() or 1) + 4)  # asyncio.to_thread's


@dataclass(frozen=True)
class Wire:
    """A network of ``gigabits`` per second."""

    gigabits: float

    def seconds(self, size: float) -> float:
        """Seconds that ``size`` bytes take."""
        return 8 * size / (self.gigabits * 1e9)


def _ppm(image: Floats) -> bytes:
    return encode(image, "image", "ppm")


def _png(image: Floats) -> bytes:
    return encode(image, "image", "png")


def _png_at(level: int) -> Encode:
    def encode_at_level(image: Floats) -> bytes:
        # Through PPM and back: the rounding to 8 bits is the SDK's own, and the detour is one copy.
        buffer = io.BytesIO()
        Image.open(io.BytesIO(_ppm(image))).save(buffer, "PNG", compress_level=level)
        return buffer.getvalue()

    return encode_at_level


WAYS: Mapping[str, tuple[Encode, int]] = {
    "PPM (the default)": (_ppm, THREADS),
    "PPM, one thread": (_ppm, 1),
    'PNG (image_format="png")': (_png, THREADS),
    "PNG, one thread": (_png, 1),
    "PNG, level 0": (_png_at(0), THREADS),
    "PNG, level 3": (_png_at(3), THREADS),
    "PNG, level 6": (_png_at(6), THREADS),
}


def measure(count: int, side: int, rounds: int) -> tuple[Rates, dict[str, float]]:
    """Images per second of every way, and the mean bytes of an image."""
    images = _images(min(DISTINCT, count), side)
    sizes: dict[str, float] = {}

    def turn(name: str) -> Sequence[int]:
        way, threads = WAYS[name]
        with ThreadPoolExecutor(threads) as pool:
            found = list(pool.map(lambda k: _size(way, images[k % len(images)]), range(count)))
        sizes[name] = sum(found) / count
        return found

    rates = Rates()
    for _ in range(rounds):
        rates.run({name: lambda name=name: turn(name) for name in WAYS})  # type: ignore[misc]
    return rates, sizes


def _size(way: Encode, image: Floats) -> int:
    data = way(image)
    hashlib.blake2b(data, digest_size=16).digest()
    return len(data)


def _images(count: int, side: int) -> list[Floats]:
    edits = Pictures(side).group(count).edits
    return [np.asarray(edit, np.float32).transpose(2, 0, 1) / np.float32(255) for edit in edits]


def report(rates: Rates, sizes: Mapping[str, float], count: int, wires: Sequence[Wire] = (Wire(1), Wire(10))) -> str:
    """The table: encoding alone, then encoding and sending over each wire, with ratios to the first way."""
    base = rates.names[0]

    def seconds(name: str, rate: float, wire: Wire) -> float:
        return count / rate + wire.seconds(count * sizes[name])

    rows = []
    for name in rates.names:
        row = [name, f"{1000 / rates.rate(name):.2f}", f"{sizes[name] / 1000:,.0f}", f"{count / rates.rate(name):.2f}"]
        for wire in wires:
            total = [seconds(name, one[name], wire) for one in rates.rounds]
            ratio = [seconds(name, one[name], wire) / seconds(base, one[base], wire) for one in rates.rounds]
            row += [f"{median(total):.2f}", f"{median(ratio):.2f}"]
        rows.append(row)
    headings = [f"{count} images", "ms per image", "kB per image", "s to encode"]
    headings += [heading for wire in wires for heading in (f"s with {wire.gigabits:g} Gbit/s", "ratio")]
    return table(headings, rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=288)
    parser.add_argument("--side", type=int, default=512, help="pixels")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(machine())
    print(report(*measure(options.images, options.side, options.rounds), options.images))


if __name__ == "__main__":
    main()
