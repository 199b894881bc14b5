"""MMRB2's image editing: 1,000 pairs without ties, from one source image or several.

Counted as in its ``compute_accuracy.py``: each pair is judged in both orders, pairs without a judgement are not
counted, and a tie is wrong. A model that scores one edit at a time judges alike in both orders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jrm_client.jsonl import quoted
from jrm_training.bootstrap import Array, Share, Tally

from .formulas import Labels, in_order, share_sums
from .pairs import Benchmark, Clusters, Label, Pair, Parsed
from .rows import image, items, text

_LABELS: Mapping[str, Label] = {"A": 1, "B": -1}


def parse(row: Mapping[str, Any], folder: Path) -> Parsed:
    """Read a pair of ``edit.json``. Raises ValueError with the field that is missing or wrong."""
    name = text(row, "id" if "id" in row else "pair_id")  # its README has the one, its code the other
    chosen = text(row, "chosen")
    if chosen not in _LABELS:
        raise ValueError(f"chosen: expected A or B, got {chosen[:40]}")
    words, sources = _content(row, "prompt_content")
    if not sources:
        raise ValueError("prompt_content: no image")
    parts = ["all", "all/one source" if len(sources) == 1 else "all/several sources"]
    parts += [f"all/{row['prompt_source']}"] if isinstance(row.get("prompt_source"), str) else []
    return Parsed(
        sources=[image(path, "prompt_content", folder) for path in sources],
        edits=(_response(row, "response_a", folder), _response(row, "response_b", folder)),
        instruction="\n".join(words),
        label=_LABELS[chosen],
        parts=tuple(parts),
        identity=(name,),
    )


def _response(row: Mapping[str, Any], field: str, folder: Path) -> bytes:
    response = row.get(field)
    if not isinstance(response, dict):
        raise ValueError(f"{field}: missing")
    words, images = _content(response, "response_content", f"{field}.response_content", words_needed=False)
    if len(images) != 1 or words:
        more = " and text" if words else ""
        raise ValueError(f"{field}: {len(images)} images{more}; expected one image")
    return image(images[0], field, folder)


def _content(
    row: Mapping[str, Any], field: str, name: str | None = None, *, words_needed: bool = True
) -> tuple[list[str], list[str]]:
    """The texts and the paths of images in a list of ["text" or "image", value]."""
    words, images = [], []
    for item in items(row, field):
        match item:
            case ["text", str(value)]:
                words += [value.strip()] if value.strip() else []
            case ["image", str(value)]:
                images.append(value)
            case _:
                raise ValueError(f'{name or field}: expected ["text" or "image", value], got {quoted(str(item))}')
    if words_needed and not words:
        raise ValueError(f"{name or field}: no text")
    return words, images


def published(
    pairs: Sequence[Pair], labels: Labels, differences: Array, clusters: Clusters, *, cut: bool
) -> Mapping[str, Mapping[str, Tally]]:
    """Implements ``pairs.Published``: the share of right judgements, two for each pair that has scores."""
    right, scored = in_order(labels, differences), np.isfinite(differences)
    names = dict.fromkeys(part for pair in pairs for part in pair.parts)
    return {
        name: {
            "published_accuracy": Share(
                2 * share_sums(right, scored & _in(pairs, name), clusters.of_pair, clusters.count)
            )
        }
        for name in names
    }


def _in(pairs: Sequence[Pair], part: str) -> Any:
    return np.array([part in pair.parts for pair in pairs], bool)


BENCHMARK = Benchmark(
    name="mmrb2",
    title="MMRB2 (edit.json)",
    files=("edit.json", "**/edit.json"),
    parse=parse,
    published=published,
    caution="judges that see both edits at once (its own table) and pointwise scorers (the JRM paper's) are two tables",
    json_key="pairs",
)
