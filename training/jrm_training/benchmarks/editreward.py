"""TIGER-Lab/EditReward-Bench: pairs with ties, and the pairs of rankings of three and of four edits.

Counted as in EditReward's ``eval_bench.py`` (its ``edit_reward_bench``) and ``inference_{2,3,4}pair_hf.py``. The latter
read these rows: a ranking of three or four is right if all of its 3 or 6 pairs are, and rows belong to a ranking by the
beginning of their id. The former reads files that were not published; its rules are applied to these rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jrm_training.bootstrap import Array, Share, Tally

from .formulas import Labels, Mask, best_threshold, in_order, share_sums, with_threshold
from .pairs import Benchmark, Clusters, Label, Pair, Parsed
from .rows import image_field, text

SIZES = {"2pair": 1, "3pair": 3, "4pair": 6}  # pairs of a group
_OF = {"2pair": "AB", "3pair": "ABC", "4pair": "ABCD"}


def parse(row: Mapping[str, Any], folder: Path) -> Parsed:
    """Read a row. Raises ValueError with the field that is missing or wrong."""
    kind = text(row, "dataset")
    if kind not in SIZES:
        raise ValueError(f"dataset: expected one of {', '.join(SIZES)}, got {kind[:40]}")
    compared = "AvsB" if kind == "2pair" else text(row, "comparison_type")
    letters = compared.split("vs")
    if len(letters) != 2 or letters[0] >= letters[1] or any(letter not in _OF[kind] for letter in letters):
        raise ValueError(f"comparison_type: {compared[:40]} is no comparison of a {kind}")
    name = text(row, "id")
    return Parsed(
        sources=[image_field(row, "source_image", folder)],
        edits=(image_field(row, "candidate_1", folder), image_field(row, "candidate_2", folder)),
        instruction=text(row, "instruction"),
        label=_label(text(row, "ranking"), letters, kind),
        parts=("all", kind),
        identity=(kind, name, compared),
        group="" if kind == "2pair" else f"{kind} {name.split('_')[0] if '_' in name else name[:10]}",
        group_size=SIZES[kind],
    )


def _label(ranking: str, letters: Sequence[str], kind: str) -> Label:
    """A tie in a ranking of three or four, which that code does not expect, can never be right in it."""
    first, second = letters
    if ranking == f"{first}>{second}":
        return 1
    if ranking == f"{second}>{first}":
        return -1
    if ranking == f"{first}={second}" or (kind == "2pair" and ranking in ("A=B=Good", "A=B=Bad")):
        return 0
    raise ValueError(f"ranking: {ranking[:40]} is no verdict on {first} and {second}")


def published(
    pairs: Sequence[Pair], labels: Labels, differences: Array, clusters: Clusters, *, cut: bool
) -> Mapping[str, Mapping[str, Tally]]:
    """Implements ``pairs.Published``.

    ``published_pairwise``: over pairs, ties by a threshold that is chosen on these very pairs (3pair and 4pair have no
    ties: no threshold). ``published_ranking``: over groups, the order of the scores is that of people; a human tie
    needs a difference within that threshold. Of equal scores the later edit comes first, which is what that code's sort
    does with two edits; with more it depends on numpy's version and the processor. ``published_group``: over groups,
    every pair in order, equal scores being wrong.
    """
    kinds = np.array([pair.parts[1] for pair in pairs], "U8")
    scored = np.isfinite(differences)
    of_pair, count = clusters.of_pair, clusters.count
    ranked = np.where(labels == 1, differences > 0, (labels == -1) & (differences <= 0))
    figures: dict[str, dict[str, Tally]] = {}
    rankings = np.zeros((count, 2))
    for kind in SIZES:
        counted = scored & (kinds == kind)
        if not counted.any():
            continue
        if kind == "2pair":
            threshold = best_threshold(labels[counted], differences[counted])
            pairwise = with_threshold(labels, differences, threshold)
            ranked = np.where((labels == 0) & counted, np.abs(differences) <= threshold, ranked)
            sums = share_sums(ranked, counted, of_pair, count)
            figures[kind] = {"published_pairwise": Share(share_sums(pairwise, counted, of_pair, count))}
        else:
            pairwise = in_order(labels, differences)
            sums = _group_sums(pairs, ranked & scored, counted, clusters, cut=cut)
            figures[kind] = {
                "published_pairwise": Share(share_sums(pairwise, counted & (labels != 0), of_pair, count)),
                "published_group": Share(_group_sums(pairs, pairwise & scored, counted, clusters, cut=cut)),
            }
        figures[kind]["published_ranking"] = Share(sums)
        rankings += sums
    if figures:
        threshold = best_threshold(labels[scored], differences[scored])
        pairwise = with_threshold(labels, differences, threshold)
        figures["all"] = {
            "published_pairwise": Share(share_sums(pairwise, scored, of_pair, count)),
            "published_ranking": Share(rankings),
        }
    return figures


def _group_sums(pairs: Sequence[Pair], right: Mask, counted: Mask, clusters: Clusters, *, cut: bool) -> Array:
    """Groups all of whose pairs are right, and groups. One that lacks a pair, or has more, is wrong; none if cut."""
    members: dict[str, list[int]] = {}
    for index in np.flatnonzero(counted):
        members.setdefault(pairs[index].group, []).append(int(index))
    sums = np.zeros((clusters.count, 2))
    for indices in members.values():
        is_complete = len(indices) == pairs[indices[0]].group_size
        if is_complete or not cut:
            sums[clusters.of_pair[indices[0]]] += (is_complete and bool(right[indices].all()), 1)
    return sums


BENCHMARK = Benchmark(
    name="editreward",
    title="TIGER-Lab/EditReward-Bench",
    files=("**/train-*.parquet", "**/*.parquet", "*.jsonl"),
    parse=parse,
    published=published,
    caution="not the EditReward-Bench of EditScore, which is table 1 of the JRM paper: no number compares",
)
