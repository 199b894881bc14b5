"""GenAI-Bench's image editing: votes for the left edit, the right one, neither, or against both.

Counted as in EditReward's ``eval_bench.py`` (its ``genai_edit_bench``), which is what is published of scalar models;
both kinds of ties are one there. GenAI-Bench's own code compares the four labels of a judge that writes them; a
judge that writes ``A=B`` is right for either kind of tie, and that is what a threshold on scores amounts to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jrm_training.bootstrap import Array, Share, Tally

from .formulas import Labels, accuracy_with_ties_on_the_data, in_order, share_sums
from .pairs import Benchmark, Clusters, Label, Pair, Parsed
from .rows import image_field, text

_LABELS: Mapping[str, Label] = {"leftvote": 1, "rightvote": -1, "tievote": 0, "bothbad_vote": 0}


def parse(row: Mapping[str, Any], folder: Path) -> Parsed:
    """Read a row of the configuration ``image_edition``. Raises ValueError with the field that is missing or wrong."""
    vote = text(row, "vote_type")
    if vote not in _LABELS:
        raise ValueError(f"vote_type: expected one of {', '.join(_LABELS)}, got {vote[:40]}")
    return Parsed(
        sources=[image_field(row, "source_image", folder)],
        edits=(image_field(row, "left_output_image", folder), image_field(row, "right_output_image", folder)),
        instruction=text(row, "instruct_prompt"),
        label=_LABELS[vote],
        parts=("all",),
    )


def published(
    pairs: Sequence[Pair], labels: Labels, differences: Array, clusters: Clusters, *, cut: bool
) -> Mapping[str, Mapping[str, Tally]]:
    """Implements ``pairs.Published``: with ties, the threshold chosen on these very pairs, and without ties."""
    scored = np.isfinite(differences)
    with_ties = np.zeros(len(pairs), bool)
    with_ties[scored] = accuracy_with_ties_on_the_data(labels[scored], differences[scored])
    of_pair, count = clusters.of_pair, clusters.count
    decided = scored & (labels != 0)
    return {
        "all": {
            "published_with_ties": Share(share_sums(with_ties, scored, of_pair, count)),
            "published_without_ties": Share(share_sums(in_order(labels, differences), decided, of_pair, count)),
        }
    }


BENCHMARK = Benchmark(
    name="genai-bench",
    title="TIGER-Lab/GenAI-Bench (image_edition, test_v1)",
    files=("image_edition/test_v1-*.parquet", "**/image_edition/test_v1-*.parquet", "test_v1-*.parquet", "*.jsonl"),
    parse=parse,
    published=published,
    caution="its leaderboard has judges that write one of four labels; scalar models are those of EditReward's table",
)
