"""What a candidate costs the server process, in CPU milliseconds: ``python -m benchmarks.request_cost``.

A server on a made-up device that takes no time scores groups that the SDK sends from this process, one after the other.
Counted is the CPU time of all threads of the server, and of the one that runs its event loop (Linux). Beside it stands
what pillow alone takes in this process to open and decode one such image.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from jrm_client import JRMClient
from jrm_client.images import ImageInput
from jrm_service.bench.pictures import Group
from jrm_service.bench.tables import machine, table

from .pictures import Pictures
from .server_processes import Replica


def _file(image: Image.Image, kind: str, **options: int) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


FORMS: Mapping[str, Callable[[Image.Image], ImageInput]] = {
    "PNG": lambda image: _file(image, "PNG"),
    "JPEG, quality 95": lambda image: _file(image, "JPEG", quality=95),
    "array, sent as PPM": np.asarray,
}
"""What a caller hands to the SDK."""


def measure(form: Callable[[Image.Image], ImageInput], groups: list[Group]) -> tuple[float, float]:
    """CPU milliseconds of the server process, and of its event loop, for each candidate of the groups but the first."""
    settings: dict[str, object] = {"backend": "fake", "cache_entries": 0}
    with tempfile.TemporaryDirectory() as folder, Replica(settings, [], Path(folder) / "log") as server:
        client = JRMClient(server.url)
        candidates, whole, loop = 0, 0.0, 0.0
        for number, group in enumerate(groups):
            source, edits = form(group.sources[0]), [form(edit) for edit in group.edits]
            before = server.cpu_seconds
            client.score_group(source, group.instruction, edits)
            after = server.cpu_seconds
            if number > 0:  # the first one imports and connects
                candidates += len(edits)
                whole += after.process - before.process
                loop += after.main_thread - before.main_thread
        client.close()
    return 1e3 * whole / candidates, 1e3 * loop / candidates


def pillow_alone(form: Callable[[Image.Image], ImageInput], groups: list[Group]) -> float | None:
    """CPU milliseconds to open and decode a source or an edit; None for what is not a file."""
    files = [form(image) for group in groups for image in (*group.sources, *group.edits)]
    began = time.process_time()
    for file in files:
        if not isinstance(file, bytes):
            return None
        Image.open(io.BytesIO(file)).convert("RGB")
    return 1e3 * (time.process_time() - began) / len(files)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=20, help="of the measurement; one more goes before")
    parser.add_argument("--edits", type=int, default=12, help="of a group")
    parser.add_argument("--side", type=int, default=512, help="of the images, in pixels")
    options = parser.parse_args()
    pictures = Pictures(options.side)
    groups = [pictures.group(options.edits) for _ in range(1 + options.groups)]
    rows = []
    for name, form in FORMS.items():
        process, loop = measure(form, groups)
        alone = pillow_alone(form, groups)
        rows.append([name, f"{process:.1f}", f"{loop:.1f}", "" if alone is None else f"{alone:.1f}"])
    print(machine())
    headings = [f"{options.side} x {options.side}, groups of {options.edits}", "server", "event loop", "pillow alone"]
    print(table(headings, rows))


if __name__ == "__main__":
    main()
