"""Whether the two heads agree: the verdict that a critique of the synthetic world opens with, beside label and score.

========================  ========  ==================================================================================
figure                    unit      what is right
========================  ========  ==================================================================================
``verdict_right``         critique  its verdict is the true label; a critique that is invalid or has none is wrong
``verdict_accuracy``      pair      the verdict as a score: pairwise accuracy, equal verdicts count one half
``verdict_agreement``     pair      of two edits with different verdicts the better one has the higher mean
========================  ========  ==================================================================================

Pairs are within a group, as everywhere. A critique without a verdict takes part in no pair.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from jrm_training.bootstrap import Share, Tally
from jrm_training.critique import CritiqueError, parse_critique
from jrm_training.evaluate import ScoredGroup, rated
from jrm_training.metrics import Rated, tallies
from jrm_training.world.critique import VERDICTS

_LABELS = {words: label for label, words in VERDICTS.items()}
_OPENING = re.compile(rf"<\|global\|> ({'|'.join(_LABELS)}):")


def verdict(text: str, regions: bool) -> int | None:
    """The label, 1 to 4, that a critique's reasoning opens with; None for an invalid critique or other words."""
    try:
        opening = _OPENING.match(parse_critique(text, regions).reasoning)
    except CritiqueError:
        return None
    return _LABELS[opening[1]] if opening else None


def verdict_tallies(
    scored: Sequence[ScoredGroup],
    critiques: Sequence[Sequence[Mapping[str, str]]],
    dimension: str,
    regions: bool,
) -> dict[str, Tally]:
    """The figures above for one dimension, as sums over groups; ``critiques`` as ``make_report`` takes them."""
    of_label, of_score = [], []
    right = np.zeros((len(scored), 2))
    for number, (group, written) in enumerate(zip(scored, critiques, strict=True)):
        truth = rated(group, dimension)
        texts = [edit.get(dimension) for edit in written] or [None] * len(group.outcomes)
        verdicts = np.array([math.nan if text is None else _number(verdict(text, regions)) for text in texts])
        has_critique = np.array([text is not None for text in texts]) & np.isfinite(truth.labels)
        right[number] = (verdicts[has_critique] == truth.labels[has_critique]).sum(), has_critique.sum()
        none = np.full(len(texts), math.nan)
        of_label.append(Rated(truth.labels, verdicts, none))
        of_score.append(Rated(verdicts, truth.means, none))
    return {
        "verdict_right": Share(right),
        "verdict_accuracy": tallies(of_label)["pairwise_accuracy"],
        "verdict_agreement": tallies(of_score)["pairwise_accuracy"],
    }


def _number(label: int | None) -> float:
    return math.nan if label is None else float(label)
