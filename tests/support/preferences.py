"""Preference files for tests of annotation: pictures that can be told apart, rows as a test wants them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support.pictures import encode, photo


def row(number: int, *labels: dict[str, float], **changes: Any) -> dict[str, Any]:
    """A row of two edits or more; images are named by row and place."""
    return {
        "source": f"images/{number}.png",
        "instruction": f"edit {number}",
        "edits": [{"image": f"images/{number}-{n}.png", "labels": label} for n, label in enumerate(labels)],
    } | changes


def both(following: float, quality: float) -> dict[str, float]:
    return {"instruction_following": following, "visual_quality": quality}


def write(folder: Path, rows: Sequence[dict[str, Any]], name: str = "pairs.jsonl") -> Path:
    """Write the rows, and a picture for every path in them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "images").mkdir(exist_ok=True)
    path = folder / name
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    for one in rows:
        sources = one.get("source") or []
        for picture in [*([sources] if isinstance(sources, str) else sources), *(e["image"] for e in one["edits"])]:
            if not (folder / picture).exists():
                (folder / picture).write_bytes(encode(photo(48, 40, seed=sum(picture.encode()))))
    return path
